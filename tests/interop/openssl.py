#!/usr/bin/env python3
"""OpenSSL as the other side of RSA-OAEP and SM2: it opens what we encrypt, and we open what it encrypts.

Private keys never leave kmsgate. So OpenSSL opens our ciphertexts at the provider's seam, with keys that OpenSSL made and
`examples/encrypt_cases` seals and uses; and over REST it encrypts under the public key that get-publickey answers.
CASES is how many of each, 1000 if it is not set.
"""

import base64
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import ROOT, Rest, argument, run
from libcrypto import Key

CASES = int(os.environ.get("CASES", "1000"))
OAEP = {"rsa_padding_mode": "oaep", "rsa_oaep_md": "sha256", "rsa_mgf1_md": "sha256"}
SM2 = {}
# The most plaintext of each spec, in bytes, and how OpenSSL is told the algorithm.
SPECS = {"RSA_2048": (190, OAEP), "RSA_3072": (318, OAEP), "RSA_4096": (446, OAEP), "SM2": (4096, SM2)}


def openssl_opens_what_we_encrypt(_):
    for spec, (limit, parameters) in SPECS.items():
        with tempfile.TemporaryDirectory() as directory:
            pem, der = Path(directory, "key.pem"), Path(directory, "key.der")
            kind = ["SM2"] if spec == "SM2" else ["RSA", "-pkeyopt", f"rsa_keygen_bits:{spec[4:]}"]
            openssl("genpkey", "-algorithm", *kind, "-out", pem)
            openssl("pkcs8", "-topk8", "-nocrypt", "-in", pem, "-outform", "DER", "-out", der)
            key = Key(pem.read_bytes(), parameters)
            cases = subprocess.run(
                [ROOT / "target/debug/examples/encrypt_cases", spec, der, str(CASES)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout.splitlines()
        assert len(cases) == CASES, (spec, len(cases))
        lengths = set()
        for case in cases:
            plaintext, ciphertext = map(bytes.fromhex, case.split())
            assert key.decrypt(ciphertext) == plaintext, (spec, case)
            lengths.add(len(plaintext))
        assert {1, limit} <= lengths <= set(range(1, limit + 1)), (spec, sorted(lengths))
        report(f"{spec}: OpenSSL opened {len(cases)} of ours")


def we_open_what_openssl_encrypts(dev):
    for spec, key_id in [("RSA_3072", dev.rsa_key), ("SM2", dev.sm2_key)]:
        we_open(dev, spec, key_id, CASES)
    for spec in ["RSA_2048", "RSA_4096"]:
        # Fewer, for what differs from RSA_3072 is a length.
        we_open(dev, spec, make_key(dev, spec), CASES // 10)


def make_key(dev, spec):
    # To find a prime is a matter of luck: on a busy machine it may outlast the server's deadline.
    for _ in range(5):
        alias = f"openssl-{random.getrandbits(64):016x}"
        members = {"key_alias": alias, "key_spec": spec, "key_usage": "ENCRYPT_DECRYPT"}
        status, answer = Rest(dev).ask("create-key", **members)
        if status != 504:
            break
    assert status == 200, f"{status} {answer}"
    return answer["key_info"]["key_id"]


def we_open(dev, spec, key_id, count):
    limit, parameters = SPECS[spec]
    key = Key(Rest(dev).post("get-publickey", key_id=key_id)["public_key"].encode(), parameters)
    algorithm = "SM2_ENCRYPT" if spec == "SM2" else "RSAES_OAEP_SHA_256"
    lengths = [1, limit] + [random.randint(1, limit) for _ in range(count - 2)]
    plaintexts = [os.urandom(length) for length in lengths]
    cases = [(plaintext, base64.b64encode(key.encrypt(plaintext)).decode()) for plaintext in plaintexts]

    def check(share):
        rest = Rest(dev)
        for plaintext, cipher_text in share:
            members = {"key_id": key_id, "encryption_algorithm": algorithm, "cipher_text": cipher_text}
            answer = rest.post("decrypt-data", **members)
            assert base64.b64decode(answer["plain_text_base64"]) == plaintext, (spec, plaintext.hex(), cipher_text)

    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(check, [cases[0::2], cases[1::2]]):
            pass
    report(f"{spec}: we opened {len(cases)} of OpenSSL's")


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, stderr=subprocess.DEVNULL)


def report(line):
    print(f"   {line}", file=sys.stderr, flush=True)


run([openssl_opens_what_we_encrypt, we_open_what_openssl_encrypts], argument())
