#!/usr/bin/env python3
"""Makes what fuzzing begins from: fuzz/corpus/TARGET/NAME, each a few bytes to some kilobytes.

Run it again after a change here; files that it no longer makes are left. What a run finds itself
goes to fuzz/target/corpus, and is not kept in the repository.
"""

import base64
import hashlib
import json
from pathlib import Path

HERE = Path(__file__).parent
VECTORS = HERE.parent / "tests/vectors"
PROJECT = "53d1aefc533f4ce9a59c26b01667cbcf"
KEY = "0d0466b0-e727-4d9c-b35d-f84bb474a37f"
KEYS = {"aes": KEY[:-1] + "0", "rsa": KEY[:-1] + "1", "sm2": KEY[:-1] + "4"}


def put(target, **seeds):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in seeds.items():
        (folder / name).write_bytes(seed.encode() if isinstance(seed, str) else seed)


def part(text):
    text = text.encode() if isinstance(text, str) else text
    return bytes([len(text)]) + text


def varint(number):
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def message(fields):
    """A protobuf message: numbers are varints, text and bytes are length-delimited."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def der(path):
    lines = path.read_text().splitlines()
    return base64.b64decode("".join(line for line in lines if not line.startswith("-")))


def frames():
    head = bytes([3, 0, 1, 0, 0, 0, 0, 1]) + KEY.encode() + bytes(8)
    put("frame", empty=b"\0", head=b"\0" + head, frame=b"\0" + head + bytes(88),
        elsewhere=b"\0\x02" + head[1:] + bytes(88), longest=b"\0" + head + bytes(4184),
        written=b"\x55" + part("aad") + b"attack at dawn", one=b"\x01\0x", block=b"\xff\0" + b"x" * 16)


def sm2():
    def tlv(tag, content):
        size = len(content)
        length = bytes([size]) if size < 128 else bytes([0x81, size])
        return bytes([tag]) + length + content

    x, y = b"\0" + b"\x9a" * 32, b"\x1b" * 32
    whole = tlv(2, x) + tlv(2, y) + tlv(4, b"\x11" * 32) + tlv(4, b"\x22" * 14)
    longer = tlv(2, x) + tlv(2, y) + tlv(4, b"\x11" * 32) + tlv(4, b"\x22" * 140)
    put("sm2_der", read=b"\0" + tlv(0x30, whole), longer=b"\0" + tlv(0x30, longer),
        indefinite=b"\0\x30\x80" + whole + b"\0\0", trailing=b"\0" + tlv(0x30, whole) + b"\0",
        written=b"\x55attack at dawn", one=b"\x01x")


def oaep():
    seed = b"\x5a" * 32
    put("oaep_block", ciphertext=b"\0" + b"\x11" * 256, long=b"\0" + b"\xff" * 257,
        message=b"\x08" + seed + b"\x01attack at dawn", empty=b"\x08" + seed + bytes(190) + b"\x01",
        zeros=b"\x0c\x40" + seed + b"\x01message", first=b"\x09\x01" + seed + b"\x01message",
        hash=b"\x0a" + seed + hashlib.sha256(b"label").digest() + b"\x01message",
        separator=b"\x08" + seed + b"\x02message", none=b"\x08" + seed)


def material():
    rsa, sm2 = der(VECTORS / "rsa_2048.pem"), der(VECTORS / "sm2.pem")
    long = der(VECTORS / "rsa_3072.pem")
    put("key_material", aes=b"\0" + bytes(32), short=b"\0" + bytes(31), rsa_2048=b"\x02" + rsa,
        rsa_3072=b"\x04" + long, sm2=b"\x08" + sm2, other=b"\x08" + rsa,
        sealed=b"\x01\0", sealed_rsa=b"\x03\x03", sealed_sm2=b"\x09\0", bit=b"\x01\x01\0\0\x2a\x01", cut=b"\x05\x02\x01\0\x01",
        longer=b"\x09\0\x02" + part("x"), project=b"\x01\0\x03" + part("p"), id=b"\x03\0\x04\x23b",
        version=b"\x07\0\x05\0\x02", spec=b"\x03\0\x06\x02", undone=b"\x01\x03" + b"\0\0\x2a\x01" * 2,
        rsa_3072_wrong_qinv=b"\x04" + long[:-1] + bytes([long[-1] ^ 1]))


def bodies():
    common = {"key_id": KEY, "sequence": "919c82d4-8046-4722-9094-35c3c6524cff"}
    ciphertext = base64.b64encode(bytes(140)).decode()
    operations = [
        ("encrypt", {"plain_text": "日本 \\ \"", "encryption_algorithm": "SYMMETRIC_DEFAULT",
                     "additional_authenticated_data": "aad"}),
        ("decrypt", {"cipher_text": ciphertext, "encryption_algorithm": "SM2_ENCRYPT"}),
        ("create", {"key_alias": "test", "key_spec": "AES_256", "key_usage": "ENCRYPT_DECRYPT",
                    "key_description": "d", "origin": "kms", "keystore_id": "0"}),
        ("list", {"limit": "2", "marker": "1", "key_state": "2", "key_spec": "ALL"}),
        ("delete", {"pending_days": "7"}),
        ("describe", {}), ("enable", {}), ("disable", {}), ("cancel", {}), ("public", {}),
        ("alias", {"key_alias": "other"}), ("description", {"key_description": "other"}), ("rotate", {}),
    ]
    for number, (name, members) in enumerate(operations):
        put("json_body", **{name: bytes([number]) + json.dumps(common | members).encode()})
    put("json_body", base64=b"\0" + json.dumps(common | {"plain_text_base64": "Zm9vYg=="}).encode(),
        both=b'\0{"plain_text":"a","plain_text_base64":"Zg=="}', null=b'\x05{"key_id":null}',
        twice=b'\x05{"key_id":"a","key_id":"b"}',
        within=b'\x05{"x":[{"y:":1,"y\\u003a":{"z":2}}]}', alike=b'\x05{"x:\\"":1,"y":{"x:\\"":2}}', number=b'\x05{"key_id":5}',
        unknown=b'\x05{"x":[1,-2.5e3,true,null,{"y":{}}],"key_id":"\\ud834\\udd1e\\u0000"}',
        half=b'\x05{"key_id":"\\ud834"}', binary=b'\x05{"key_id":"\xff"}', deep=b'\x05{"x":' + b"[" * 130)


def signatures():
    def request(kind, target, value, body):
        return bytes([kind, 1, 0, 2]) + part(target) + part(value) + body

    put("signature", plain=request(0, "/v1.0/p/kms/list-keys", "value", b"{}"),
        query=request(6, "/a%2fb/%zz/?b=2&a=1&a=%41+&&c", " two  words ", b""),
        method=request(5, "/", "", b"body"), value=request(10, "/a//b/..", "\tx", b"body"),
        path=request(14, "/%E4%BD%A0?x", "\u00e4".encode("latin-1"), b"body"))


def headers():
    signed = ("authorization: SDK-HMAC-SHA256 {}, SignedHeaders=host;x-sdk-date, Signature=" + "ab" * 32
              + "\nhost: h\nx-sdk-date: 20191115T033655Z\n\n{{}}")
    put("credential_headers", token="x-auth-token: known-token\n", bearer="authorization: Bearer known-token\n",
        unknown="x-auth-token: other\n", two="x-auth-token: known-token\nauthorization: Bearer known-token\n",
        layout_a=signed.format("Access=AK"), layout_b=signed.format("Credential=AK/20191115///sdk_request"),
        other="authorization: SDK-HMAC-SM3 Access=AK\n", both="x-auth-token: x\n" + signed.format("Access=AK"),
        hash="x-sdk-content-sha256: UNSIGNED-PAYLOAD\n" + signed.format("Access=AK"), none="\n")


def tokens():
    def encode(text):
        return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()

    header, claims = '{"alg":"ES256","kid":"k"}', '{"iss":"i","aud":"kms","sub":"s","exp":4102444800}'
    signed = encode(header) + "." + encode(claims)
    signature = "4bev5d9RiH9zloi0nF61hszVfAYU8L1paK5eAp-8pnjBdwhPJquBTNWhKrfYYtV93UAHQnDY4jhznQUCGFK_wQ"
    key = ('{"kty":"EC","crv":"P-256","kid":"k","x":"JyS04xCV3s1xV66oqYV20dMlylihTfURhcCo136Szdk",'
           '"y":"hZirD_yEpNtnDN9nki_Q9Jb0z5XOJNowH9iz0Y5NzqQ"}')
    rsa = '{"kty":"RSA","alg":"RS256","use":"sig","n":"' + encode("\x7f" * 256) + '","e":"AQAB"}'
    put("jwt", good=f"t{signed}.{signature}", unsigned=f't{encode(header.replace("ES256", "none"))}.{encode(claims)}.',
        zeros=f"t{signed}.{'A' * 86}", five=f"t{signed}.{signature}.x.y", plain="ttoken", padded=f"t{signed}==.{signature}",
        claims=b"p" + part(header) + claims.encode(), times=b"p" + part(header) + claims.replace("}", ',"nbf":1.5e9}').encode(),
        critical=b"p" + part(header.replace("}", ',"crit":["exp"]}')) + claims.encode(),
        twice=b"p" + part(header) + claims.replace("{", '{"sub":"t",').encode(),
        keys=f'k{{"keys":[{key}]}}', types=f'k{{"keys":[{key},{rsa},{{"kty":"oct","k":"AA"}}]}}', none='k{"keys":[]}',
        edwards='k{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}')


def files():
    token = ('[[token]]\nname = "billing"\nsha256 = "' + "ab" * 32 + f'"\nproject = "{PROJECT}"\n'
             'expires = 2027-01-01T00:00:00+08:00\nactions = ["kms:cmk:encryptData", "kms:cmk:get*"]\n')
    put("token_file", file=token, two=token + token.replace("billing", "b").replace("ab", "cd"), twice=token * 2,
        local=token.replace("+08:00", ""), empty="", unknown=token + "x = 1\n",
        made=b"!" + part("billing") + part(PROJECT) + part("kms:*") + b"token",
        quoted=b"!" + part('b"\n') + part("p") + part("kms:cmk:*") + b"\xff")
    key = (f'[[access_key]]\naccess_key = "AKEXAMPLE0000000000"\nsecret_key = "@"\nname = "billing"\n'
           f'project = "{PROJECT}"\nexpires = 2027-01-01T00:00:00Z\nactions = ["kms:cmk:*"]\n')
    secret = part("secretsecretsecretsecret")
    texts = dict(file=key, twice=key * 2, misplaced=key.replace('"billing"', '["@"]'), number=key.replace(f'"{PROJECT}"', "@"),
                 unknown=key + "@ = 1\n", empty="", unnamed=key.replace('name = "billing"\n', ""), cut=key[:key.index("@") + 1])
    put("access_key_file", quoted=part('"\n') + key.encode(), **{name: secret + text.encode() for name, text in texts.items()})
    rule = ('[[rule]]\nname = "a"\neffect = "allow"\ncallers = ["billing", "billing-*"]\nroles = ["auditor"]\n'
            f'projects = ["{PROJECT}"]\nactions = ["kms:cmk:encrypt*"]\nkeys = ["alias:billing/*", "{KEY}"]\n'
            'algorithms = ["SYMMETRIC_DEFAULT"]\n').encode()
    deny = rule.replace(b'"a"', b'"b"').replace(b"allow", b"deny").replace(b"billing/*", b"billing/secret")
    asked = part("billing-1") + part("auditor") + part(KEY) + part("billing/secret") + bytes(3)
    unnamed = part("x") + part("auditor") + part("") + part("") + b"\0\0\1"
    put("policy_file", allow=asked + rule, both=asked + rule + deny, open=unnamed + deny, twice=asked + rule * 2,
        empty=unnamed, any=asked + b'rule = [{ name = "a", effect = "deny", callers = ["*"], actions = ["kms:*"] }]',
        keyless=asked + rule.replace(b"encrypt*", b"list"), unknown=asked + rule + b"x = 1\n")
    whole = (HERE.parent / "deploy/kmsgate.toml").read_text()
    lines = [line for line in whole.splitlines() if line and not line.startswith("#")]
    small = ('root_key_file = "r"\nstore = { kind = "memory" }\nauth = { token_file = "t" }\n')
    put("configuration", whole="\n".join(lines), small=small, nobody=small.replace('token_file = "t"', ""),
        providers=small + '[crypto]\nproviders = [{ kind = "rustcrypto", key_specs = ["SM2"] }]\n',
        jwt=small.replace("auth = { token_file", "auth.token_file").replace('"t" }', '"t"')
        + '[[auth.jwt]]\nissuer = "i"\njwks_url = "https://h/k"\naudiences = ["a"]\nclock_skew = "5m"\nrules = '
        '[{ claims = { sub = "*" }, project = "p", actions = ["kms:cmk:get*"] }]\n',
        unknown=small + "x = 1\n", duration="10s", minutes="99999999999999999999m", milliseconds="500ms")


def records():
    version = message([(1, 1), (2, 1573789016000), (3, b"\x01" + bytes(80))])
    key = [(1, PROJECT), (2, KEY), (3, "alias"), (4, "text"), (5, "AES_256"), (6, "ENCRYPT_DECRYPT"), (7, 2),
           (8, 1573789016000), (10, version)]
    pending = key[:6] + [(7, 4), (8, 1573789016000), (9, 1574393816000), (10, version)]
    put("record", key=b"\x80" + message([(1, message(key))]), pending=b"\x80" + message([(1, message(pending))]),
        alias=b"\x80" + message([(2, message([(1, PROJECT), (2, "alias"), (3, KEY)]))]),
        deletion=b"\x80" + message([(3, message([(1, PROJECT), (2, KEY), (3, 1574393816000)]))]),
        clock=b"\x80" + message([(4, message([(1, 1573789016000)]))]), empty=b"\x80",
        unknown=b"\x80" + message([(1, message(key + [(11, "later")]))]), negative=b"\x01" + message([(4, message([(1, -1)]))]))


def calls():
    def call(method, *fields):
        return bytes([method]) + part(message(fields))

    def body(size, *fields, length=0):
        sent = message(fields)
        return bytes([14]) + part(bytes([size, 0]) + (len(sent) + length).to_bytes(4, "big") + sent)

    aes, rsa, sm2 = KEYS["aes"], KEYS["rsa"], KEYS["sm2"]
    head = bytes([3, 0, 1, 0, 0, 0, 0, 1]) + aes.encode() + bytes(8)
    put("grpc", body=body(255, (2, aes), (3, "secret")), body_in_pieces=body(7, (2, aes), (3, "secret")),
        body_cut=body(9, (2, aes), length=1), body_and_more=body(64, (2, aes), (3, "x"), length=-1),
        body_too_long=body(4, (2, aes), (4, bytes(180))), encrypt=call(0, (1, PROJECT), (2, aes), (3, "secret"), (6, "aad"), (7, "919c82d4-8046-4722-9094-35c3c6524cff")),
        encrypt_rsa=call(0, (2, rsa), (4, b"\0\xff"), (5, 2)), encrypt_sm2=call(0, (2, sm2), (3, "secret"), (5, 3)),
        wrong_algorithm=call(0, (2, sm2), (3, "secret"), (5, 1)),
        decrypt=call(2, (3, head + bytes(88))), decrypt_sm2=call(2, (2, sm2), (3, bytes(120)), (5, 3)),
        create=call(1, (2, "new-key"), (3, 1), (4, 1)) + call(4),
        life=call(6, (2, aes)) + call(0, (2, aes), (3, "x")) + call(5, (2, aes)) + call(12, (2, aes))
        + call(0, (2, aes), (3, "x")) + call(7, (2, aes), (3, 7)) + call(8, (2, aes)) + call(3, (2, aes)),
        rename=call(10, (2, aes), (3, "other")) + call(11, (2, aes), (3, "text")) + call(4, (2, 1), (3, 1)),
        public=call(9, (2, rsa)) + call(9, (2, aes)) + call(13), unknown=call(3, (2, KEY)), id=call(3, (2, "../x")))


def forwarded():
    own = "By=spiffe://example.org/k;Hash=ab;Subject=\"CN=a,O=\\\"b\\\";c\";URI=spiffe://example.org/billing"
    put("forwarded_certificate", own=own, two=f"URI=spiffe://example.org/x,{own}", names="By=x;DNS=a;DNS=shop.example.org",
        cut=f"{own},", open=f"a=\",{own}", none="spiffe://example.org/billing", run_on="DNS=shop.example.org;x",
        written=b"!" + bytes([1, 3, 0, 4, 1, 2, 0, 2, 2]) + part("CN=\"a\\,;") + bytes([0, 3, 0]))


for make in [frames, sm2, oaep, material, bodies, signatures, headers, forwarded, tokens, files, records, calls]:
    make()
