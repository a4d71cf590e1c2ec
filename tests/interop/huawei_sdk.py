#!/usr/bin/env python3
"""Huawei's own Python SDK, unchanged, signing with AK/SK: every operation we offer, and how each failure reaches it."""

import base64
import secrets
import time
import uuid

from common import argument, run

from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkcore.http.http_config import HttpConfig
from huaweicloudsdkkms.v2 import (
    CancelKeyDeletionRequest,
    CreateKeyRequest,
    CreateKeyRequestBody,
    CreateRandomRequest,
    DecryptDataRequest,
    DecryptDataRequestBody,
    DeleteKeyRequest,
    DisableKeyRequest,
    EnableKeyRequest,
    EncryptDataRequest,
    EncryptDataRequestBody,
    GenRandomRequestBody,
    KmsClient,
    ListKeyDetailRequest,
    ListKeysRequest,
    ListKeysRequestBody,
    OperateKeyRequestBody,
    RotateOnDemandRequest,
    ScheduleKeyDeletionRequestBody,
    ShowPublicKeyRequest,
    UpdateKeyAliasRequest,
    UpdateKeyAliasRequestBody,
    UpdateKeyDescriptionRequest,
    UpdateKeyDescriptionRequestBody,
)
from cryptography.hazmat.primitives.serialization import load_pem_public_key

ENABLED, DISABLED, PENDING_DELETION = "2", "3", "4"
NO_SUCH_KEY = "0d0466b0-e727-4d9c-b35d-f84bb474a370"

# The documented status and sentence of each code (contract, sections 2.5, 4.3 and 4.4).
DOCUMENTED = {
    "APIGW.0101": (404, "The API does not exist or has not been published in the environment."),
    "APIGW.0301": (401, "Incorrect IAM authentication information"),
    "KMS.0204": (400, "Parameters missing in the request message."),
    "KMS.0205": (400, "Invalid key ID."),
    "KMS.0206": (400, "Invalid sequence number."),
    "KMS.0207": (404, "The key does not exist."),
    "KMS.0209": (400, "The key has been disabled."),
    "KMS.0210": (400, "The key is in Scheduled deletion state and cannot be used."),
    "KMS.0308": (400, "Invalid parameter."),
    "KMS.0311": (400, "Failed to decrypt data using the RSA private key."),
    "KMS.0321": (403, "URIs in URL and X-Auth-Token do not match."),
    "KMS.0324": (400, "RSA keys cannot be rotated."),
    "KMS.0325": (400, "The asymmetric key is not support this operation."),
    "KMS.0331": (400, "The symmetric key is not support this operation."),
    "KMS.0335": (400, "The cmk is used to sign and verify."),
    "KMS.1101": (400, "Invalid key_alias."),
    "KMS.1103": (400, "Invalid key_description."),
    "KMS.1104": (400, "Duplicate key aliases."),
    "KMS.1201": (400, "The key is not disabled."),
    "KMS.1301": (400, "The key is not enabled."),
    "KMS.1401": (400, "Set the pending deletion period between 7 to 1096 days."),
    "KMS.1402": (400, "The key is already in Pending deletion state."),
    "KMS.1501": (400, "The key is not in Pending deletion state."),
    "KMS.1601": (400, "Invalid limit."),
    "KMS.1602": (400, "marker must be greater than or equals 0."),
    "KMS.2101": (400, "Invalid plain_text."),
    "KMS.2105": (400, "The symmetric key not support this encryption algorithm."),
    "KMS.2106": (400, "The rsa key not support this encryption algorithm."),
    "KMS.2107": (400, "The sm2 key not support this encryption algorithm."),
    "KMS.2108": (400, "The rsa encryption plain_text is over length."),
    "KMS.2201": (400, "Invalid cipher_text."),
}


class Kms:
    """The SDK's client, each operation in one call."""

    def __init__(self, dev, ak=None, sk=None, project=None, security_token=None):
        config = HttpConfig.get_default_config()
        config.timeout = (5, 30)
        self.dev = dev
        credentials = BasicCredentials(ak or dev.ak, sk or dev.sk, project or dev.project)
        if security_token:
            credentials = credentials.with_security_token(security_token)
        self.client = (
            KmsClient.new_builder()
            .with_http_config(config)
            .with_credentials(credentials)
            .with_endpoints([f"http://{dev.rest}"])
            .build()
        )

    def encrypt(self, key_id, plain_text, algorithm=None, **more):
        body = EncryptDataRequestBody(key_id=key_id, plain_text=plain_text, encryption_algorithm=algorithm, **more)
        return self.client.encrypt_data(EncryptDataRequest(body=body))

    def decrypt(self, cipher_text, **more):
        return self.client.decrypt_data(DecryptDataRequest(body=DecryptDataRequestBody(cipher_text=cipher_text, **more)))

    def create(self, spec=None, usage=None, alias=None, **more):
        body = CreateKeyRequestBody(key_alias=alias or fresh_alias(), key_spec=spec, key_usage=usage, **more)
        return self.client.create_key(CreateKeyRequest(body=body)).key_info.key_id

    def describe(self, key_id):
        return self.client.list_key_detail(ListKeyDetailRequest(body=OperateKeyRequestBody(key_id=key_id))).key_info

    def list(self, **filters):
        return self.client.list_keys(ListKeysRequest(body=ListKeysRequestBody(**filters)))

    def enable(self, key_id):
        return self.client.enable_key(EnableKeyRequest(body=OperateKeyRequestBody(key_id=key_id))).key_info

    def disable(self, key_id):
        return self.client.disable_key(DisableKeyRequest(body=OperateKeyRequestBody(key_id=key_id))).key_info

    def delete(self, key_id, pending_days="7"):
        body = ScheduleKeyDeletionRequestBody(key_id=key_id, pending_days=pending_days)
        return self.client.delete_key(DeleteKeyRequest(body=body))

    def cancel(self, key_id):
        return self.client.cancel_key_deletion(CancelKeyDeletionRequest(body=OperateKeyRequestBody(key_id=key_id)))

    def public_key(self, key_id):
        return self.client.show_public_key(ShowPublicKeyRequest(body=OperateKeyRequestBody(key_id=key_id)))

    def rename(self, key_id, alias):
        body = UpdateKeyAliasRequestBody(key_id=key_id, key_alias=alias)
        return self.client.update_key_alias(UpdateKeyAliasRequest(body=body)).key_info

    def redescribe(self, key_id, description):
        body = UpdateKeyDescriptionRequestBody(key_id=key_id, key_description=description)
        return self.client.update_key_description(UpdateKeyDescriptionRequest(body=body)).key_info

    def rotate(self, key_id):
        return self.client.rotate_on_demand(RotateOnDemandRequest(body=OperateKeyRequestBody(key_id=key_id)))


def encrypts_and_decrypts_under_all_three_algorithms(kms):
    dev = kms.dev
    for algorithm, key_id in [
        ("SYMMETRIC_DEFAULT", dev.aes_key),
        ("RSAES_OAEP_SHA_256", dev.rsa_key),
        ("SM2_ENCRYPT", dev.sm2_key),
    ]:
        made = kms.encrypt(key_id, "hello world", algorithm)
        assert made.status_code == 200 and made.key_id == key_id, made
        back = kms.decrypt(made.cipher_text, encryption_algorithm=algorithm, key_id=key_id)
        assert back.key_id == key_id, back
        assert back.plain_text == "hello world", back
        assert base64.b64decode(back.plain_text_base64) == b"hello world", back


def a_symmetric_ciphertext_needs_nothing_else(kms):
    made = kms.encrypt(kms.dev.aes_key, "hello world")
    back = kms.decrypt(made.cipher_text)
    assert (back.key_id, back.plain_text) == (kms.dev.aes_key, "hello world"), back


def associated_data_and_a_sequence_are_taken(kms):
    sequence = str(uuid.uuid4())
    made = kms.encrypt(kms.dev.aes_key, "x", additional_authenticated_data="tenant=7", sequence=sequence)
    back = kms.decrypt(made.cipher_text, additional_authenticated_data="tenant=7", sequence=sequence)
    assert back.plain_text == "x", back
    refused("KMS.2201", lambda: kms.decrypt(made.cipher_text, additional_authenticated_data="tenant=8"))
    refused("KMS.2201", lambda: kms.decrypt(made.cipher_text))
    plain = kms.encrypt(kms.dev.aes_key, "x").cipher_text
    refused("KMS.2201", lambda: kms.decrypt(plain, additional_authenticated_data="tenant=7"))
    # The same in bytes, not in characters: 43 characters of three bytes each are 129 bytes.
    refused("KMS.0308", lambda: kms.encrypt(kms.dev.aes_key, "x", additional_authenticated_data="密" * 43))
    kms.encrypt(kms.dev.aes_key, "x", additional_authenticated_data="密" * 42 + "ab")


def any_text_comes_back(kms):
    # The SDK sends all but ASCII as \u escapes, and characters beyond the first plane as surrogate
    # pairs.
    for text in ["密钥管理", "🔑🗝", "a\r\nb\tc\0d\x7f", "\u2028\ufeff\uffff", "é" * 2048, "🔑" * 1024, "\"\\/", " "]:
        back = kms.decrypt(kms.encrypt(kms.dev.aes_key, text).cipher_text)
        assert back.plain_text == text, ascii(text)
        assert base64.b64decode(back.plain_text_base64) == text.encode(), ascii(text)


def ciphertexts_have_the_documented_lengths(kms):
    for length in [1, 15, 16, 17, 4095, 4096]:
        cipher_text = kms.encrypt(kms.dev.aes_key, "p" * length).cipher_text
        size = len(base64.b64decode(cipher_text, validate=True))
        assert size == 124 + (length // 16 + 1) * 16, (length, size)
        assert 188 <= len(cipher_text) <= 5648, (length, len(cipher_text))
    rsa = kms.encrypt(kms.dev.rsa_key, "p" * 318, "RSAES_OAEP_SHA_256").cipher_text
    assert len(base64.b64decode(rsa, validate=True)) == 384, len(rsa)
    for length in [1, 4096]:
        sm2 = kms.encrypt(kms.dev.sm2_key, "p" * length, "SM2_ENCRYPT").cipher_text
        assert 128 <= len(sm2) <= 5648, (length, len(sm2))
        back = kms.decrypt(sm2, encryption_algorithm="SM2_ENCRYPT", key_id=kms.dev.sm2_key)
        assert back.plain_text == "p" * length


def four_identical_calls_in_a_second_succeed(kms):
    made = {kms.encrypt(kms.dev.aes_key, "again").cipher_text for _ in range(4)}
    assert len(made) == 4, made


def keys_of_every_spec_and_usage_are_made_and_described(kms):
    for spec, usage in [
        (None, None),
        ("AES_256", "ENCRYPT_DECRYPT"),
        ("RSA_2048", "ENCRYPT_DECRYPT"),
        ("RSA_2048", "SIGN_VERIFY"),
        ("SM2", "ENCRYPT_DECRYPT"),
        ("SM2", "SIGN_VERIFY"),
        ("SM2", None),
    ]:
        alias = fresh_alias()
        key_id = kms.create(spec, usage, alias, key_description="made by the SDK", sequence=str(uuid.uuid4()))
        key = kms.describe(key_id)
        assert key.key_id == key_id and key.key_alias == alias, key
        assert key.key_spec == (spec or "AES_256"), key
        assert key.key_usage == (usage or ("SIGN_VERIFY" if spec else "ENCRYPT_DECRYPT")), key
        assert key.key_description == "made by the SDK", key
        assert key.key_state == ENABLED, key
        assert key.origin == "kms" and key.default_key_flag == "0", key
        assert key.domain_id and int(key.creation_date) > 1_700_000_000_000, key
        assert key.scheduled_deletion_date == "", key


def keys_are_listed_by_page_state_and_spec(kms):
    made = [kms.create() for _ in range(3)]
    kms.disable(made[0])
    seen, marker = [], "0"
    while True:
        page = kms.list(limit="2", marker=marker, key_spec="ALL")
        assert page.keys == [key.key_id for key in page.key_details], page
        assert len(page.keys) <= 2, page
        seen += page.keys
        assert page.truncated in ("true", "false"), page
        if page.truncated == "false":
            assert page.next_marker == "", page
            break
        marker = page.next_marker
    assert len(seen) == len(set(seen)) == page.total, (len(seen), page.total)
    assert {*made, kms.dev.aes_key, kms.dev.rsa_key, kms.dev.sm2_key} <= set(seen)

    disabled = kms.list(key_state=DISABLED, limit="1000")
    assert made[0] in disabled.keys and made[1] not in disabled.keys
    assert {key.key_state for key in disabled.key_details} == {DISABLED}
    # Without a spec the documented default is AES_256.
    assert {key.key_spec for key in kms.list(limit="1000").key_details} == {"AES_256"}
    sm2 = kms.list(key_spec="SM2", limit="1000")
    assert {key.key_spec for key in sm2.key_details} == {"SM2"} and kms.dev.sm2_key in sm2.keys
    refused("KMS.1601", lambda: kms.list(limit="0"))
    refused("KMS.1601", lambda: kms.list(limit="1001"))
    refused("KMS.1602", lambda: kms.list(marker="-1"))


def a_key_is_disabled_and_enabled(kms):
    key_id = kms.create()
    cipher_text = kms.encrypt(key_id, "x").cipher_text
    refused("KMS.1201", lambda: kms.enable(key_id))
    changed = kms.disable(key_id)
    assert (changed.key_id, changed.key_state) == (key_id, DISABLED), changed
    refused("KMS.0209", lambda: kms.encrypt(key_id, "x"))
    refused("KMS.0209", lambda: kms.decrypt(cipher_text))
    refused("KMS.1301", lambda: kms.disable(key_id))
    changed = kms.enable(key_id)
    assert (changed.key_id, changed.key_state) == (key_id, ENABLED), changed
    assert kms.decrypt(cipher_text).plain_text == "x"


def a_deletion_is_scheduled_and_cancelled(kms):
    key_id = kms.create()
    cipher_text = kms.encrypt(key_id, "x").cipher_text
    refused("KMS.1501", lambda: kms.cancel(key_id))
    for days in ["6", "1097", "0", "-7"]:
        refused("KMS.1401", lambda: kms.delete(key_id, days))
    changed = kms.delete(key_id, "1096")
    assert (changed.key_id, changed.key_state) == (key_id, PENDING_DELETION), changed
    assert int(kms.describe(key_id).scheduled_deletion_date) > 1_700_000_000_000
    refused("KMS.0210", lambda: kms.encrypt(key_id, "x"))
    refused("KMS.0210", lambda: kms.decrypt(cipher_text))
    refused("KMS.1402", lambda: kms.delete(key_id))
    refused("KMS.0210", lambda: kms.rename(key_id, fresh_alias()))
    changed = kms.cancel(key_id)
    assert (changed.key_id, changed.key_state) == (key_id, DISABLED), changed
    kms.enable(key_id)
    assert kms.decrypt(cipher_text).plain_text == "x"


def public_keys_are_shown_as_subject_public_key_info(kms):
    shown = kms.public_key(kms.dev.rsa_key)
    assert shown.key_id == kms.dev.rsa_key, shown
    assert load_pem_public_key(shown.public_key.encode()).key_size == 3072
    lines = kms.public_key(kms.dev.sm2_key).public_key.split()
    assert " ".join(lines[:3]).startswith("-----BEGIN PUBLIC KEY-----"), lines
    # AlgorithmIdentifier { id-ecPublicKey, 1.2.156.10197.1.301 } in DER.
    sm2 = bytes.fromhex("301306072a8648ce3d020106082a811ccf5501822d")
    assert base64.b64decode("".join(lines[3:-3]))[2 : 2 + len(sm2)] == sm2, lines
    refused("KMS.0331", lambda: kms.public_key(kms.dev.aes_key))


def a_key_is_renamed_and_described_anew(kms):
    key_id, alias = kms.create(), fresh_alias()
    changed = kms.rename(key_id, alias)
    assert (changed.key_id, changed.key_alias) == (key_id, alias), changed
    changed = kms.redescribe(key_id, "another description, 另一个")
    assert (changed.key_id, changed.key_description) == (key_id, "another description, 另一个"), changed
    key = kms.describe(key_id)
    assert (key.key_alias, key.key_description) == (alias, "another description, 另一个"), key
    refused("KMS.1104", lambda: kms.create(alias=alias))
    refused("KMS.1104", lambda: kms.rename(kms.create(), alias))
    refused("KMS.1101", lambda: kms.create(alias="not an alias"))
    refused("KMS.1103", lambda: kms.redescribe(key_id, "d" * 256))


def a_rotated_key_still_decrypts_what_it_made(kms):
    key_id = kms.create()
    old = kms.encrypt(key_id, "old").cipher_text
    assert kms.rotate(key_id).key_id == key_id
    new = kms.encrypt(key_id, "new").cipher_text
    # Bytes 4 to 7 of a frame are the version that made it.
    assert [base64.b64decode(text)[4:8].hex() for text in (old, new)] == ["00000001", "00000002"]
    assert kms.decrypt(old).plain_text == "old"
    assert kms.decrypt(new).plain_text == "new"
    refused("KMS.0324", lambda: kms.rotate(kms.dev.rsa_key))
    refused("KMS.0325", lambda: kms.rotate(kms.dev.sm2_key))


def malformed_requests_are_refused(kms):
    dev = kms.dev
    refused("KMS.0204", lambda: kms.encrypt(dev.aes_key, None))
    refused("KMS.0204", lambda: kms.encrypt(None, "x"))
    refused("KMS.0204", lambda: kms.decrypt(None))
    refused("KMS.0205", lambda: kms.encrypt("0d0466b0", "x"))
    refused("KMS.0205", lambda: kms.encrypt(dev.aes_key.upper(), "x"))
    refused("KMS.0206", lambda: kms.encrypt(dev.aes_key, "x", sequence="short"))
    refused("KMS.0207", lambda: kms.encrypt(NO_SUCH_KEY, "x"))
    refused("KMS.0207", lambda: kms.describe(NO_SUCH_KEY))
    refused("KMS.0308", lambda: kms.encrypt(dev.aes_key, "x", "ROT13"))
    refused("KMS.2101", lambda: kms.encrypt(dev.aes_key, ""))
    refused("KMS.2101", lambda: kms.encrypt(dev.aes_key, "p" * 4097))
    refused("KMS.2101", lambda: kms.encrypt(dev.aes_key, "密" * 1366))
    refused("KMS.2108", lambda: kms.encrypt(dev.rsa_key, "p" * 319, "RSAES_OAEP_SHA_256"))


def what_is_not_offered_is_refused(kms):
    asked = CreateRandomRequest(body=GenRandomRequestBody(random_data_length="512"))
    refused("APIGW.0101", lambda: kms.client.create_random(asked))
    refused("KMS.0308", lambda: kms.create("SM4"))
    refused("KMS.0308", lambda: kms.create("AES_256", "SIGN_VERIFY"))
    refused("KMS.0308", lambda: kms.create(origin="external"))


def a_key_does_only_what_it_is_for(kms):
    dev = kms.dev
    signs = kms.create("SM2", "SIGN_VERIFY")
    refused("KMS.0335", lambda: kms.encrypt(signs, "x", "SM2_ENCRYPT"))
    refused("KMS.2105", lambda: kms.encrypt(dev.aes_key, "x", "SM2_ENCRYPT"))
    refused("KMS.2106", lambda: kms.encrypt(dev.rsa_key, "x"))
    refused("KMS.2107", lambda: kms.encrypt(dev.sm2_key, "x", "RSAES_OAEP_SHA_256"))
    refused("KMS.0308", lambda: kms.encrypt(dev.sm2_key, "x", "SM2_ENCRYPT", additional_authenticated_data="a"))


def altered_ciphertexts_do_not_open(kms):
    dev = kms.dev
    frame = base64.b64decode(kms.encrypt(dev.aes_key, "x").cipher_text)
    for at in [0, 4, 8, 44, 60, 90, 110, len(frame) - 1]:
        refused("KMS.2201", lambda: kms.decrypt(flipped(frame, at)))
    refused("KMS.2201", lambda: kms.decrypt("A" * 188))
    refused("KMS.2201", lambda: kms.decrypt("A" * 127))
    refused("KMS.2201", lambda: kms.decrypt(base64.b64encode(frame).decode(), key_id=kms.create()))
    refused("KMS.2106", lambda: kms.decrypt(base64.b64encode(frame).decode(), key_id=dev.rsa_key))
    for algorithm, key_id, code in [
        ("RSAES_OAEP_SHA_256", dev.rsa_key, "KMS.0311"),
        ("SM2_ENCRYPT", dev.sm2_key, "KMS.2201"),
    ]:
        more = {"encryption_algorithm": algorithm, "key_id": key_id}
        made = base64.b64decode(kms.encrypt(key_id, "x", algorithm).cipher_text)
        refused(code, lambda: kms.decrypt(flipped(made, len(made) - 1), **more))
        refused(code, lambda: kms.decrypt(base64.b64encode(made + b"\0").decode(), **more))
        refused("KMS.0204", lambda: kms.decrypt(base64.b64encode(made).decode(), encryption_algorithm=algorithm))


def a_wrong_signature_is_refused(kms):
    dev = kms.dev
    refused("APIGW.0301", lambda: Kms(dev, sk="wrong" * 8).encrypt(dev.aes_key, "x"))
    refused("APIGW.0301", lambda: Kms(dev, ak="NOSUCHACCESSKEY00000").encrypt(dev.aes_key, "x"))
    refused("KMS.0321", lambda: Kms(dev, project="0" * 32).encrypt(dev.aes_key, "x"))


def refused(code, call):
    """Asserts that a call fails as documented, and that the SDK can name the request."""
    try:
        answer = call()
    except ClientRequestException as error:
        status, sentence = DOCUMENTED[code]
        seen = (error.status_code, error.error_code, error.error_msg, error.request_id)
        assert error.error_code == code and error.status_code == status, (code, seen)
        assert error.error_msg.startswith(sentence), (code, seen)
        assert error.request_id, (code, seen)
        return
    raise AssertionError(f"expected {code}, saw {answer}")


def fresh_alias():
    return f"sdk-{secrets.token_hex(8)}"


def temporary_credentials_are_taken(kms):
    dev, sk, token = kms.dev, secrets.token_hex(20), secrets.token_urlsafe(400)
    file = dev.dir / "access-keys.toml"
    before = file.read_text()
    more = f"""{before}
[[access_key]]
access_key = "TEMPORARY"
secret_key = "{sk}"
security_token = "{token}"
project = "{dev.project}"
actions = ["kms:cmk:*"]
"""
    replace(file, more)
    temporary = Kms(dev, "TEMPORARY", sk, security_token=token)
    deadline = time.monotonic() + 20
    while True:
        try:
            made = temporary.encrypt(dev.aes_key, "hello world")
            break
        except ClientRequestException as error:
            # The file is looked at once a second.
            assert error.error_code == "APIGW.0301" and time.monotonic() < deadline, error
            time.sleep(0.1)
    assert temporary.decrypt(made.cipher_text).plain_text == "hello world"
    for bad in [None, token[:-1] + ("A" if token[-1] != "A" else "B")]:
        refused("APIGW.0301", lambda: Kms(dev, "TEMPORARY", sk, security_token=bad).encrypt(dev.aes_key, "x"))
    # A key that is not temporary has no security token.
    refused("APIGW.0301", lambda: Kms(dev, security_token=token).encrypt(dev.aes_key, "x"))
    replace(file, before)


def replace(file, text):
    """Puts a file that its owner alone may read in the place of another, in one step."""
    new = file.with_suffix(".new")
    new.touch(0o600)
    new.write_text(text)
    new.replace(file)


def flipped(ciphertext, at):
    """The ciphertext in Base64 with one bit changed."""
    changed = bytearray(ciphertext)
    changed[at] ^= 1
    return base64.b64encode(changed).decode()


run(
    [
        encrypts_and_decrypts_under_all_three_algorithms,
        a_symmetric_ciphertext_needs_nothing_else,
        associated_data_and_a_sequence_are_taken,
        any_text_comes_back,
        ciphertexts_have_the_documented_lengths,
        four_identical_calls_in_a_second_succeed,
        keys_of_every_spec_and_usage_are_made_and_described,
        keys_are_listed_by_page_state_and_spec,
        a_key_is_disabled_and_enabled,
        a_deletion_is_scheduled_and_cancelled,
        public_keys_are_shown_as_subject_public_key_info,
        a_key_is_renamed_and_described_anew,
        a_rotated_key_still_decrypts_what_it_made,
        malformed_requests_are_refused,
        what_is_not_offered_is_refused,
        a_key_does_only_what_it_is_for,
        altered_ciphertexts_do_not_open,
        a_wrong_signature_is_refused,
        temporary_credentials_are_taken,
    ],
    Kms(argument()),
)
