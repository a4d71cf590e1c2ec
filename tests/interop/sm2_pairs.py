"""What the comparisons of SM2 share: keys, our side as a process, and the other sides."""

import base64
import os
import random
import subprocess

from common import ROOT
import gmssl_pyx
import libcrypto

# The order of the group.
N = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123

# An id-ecPublicKey on the curve SM2, in PKCS#8 without its public half, up to the private scalar.
PKCS8 = bytes.fromhex("3041020100301306072a8648ce3d020106082a811ccf5501822d0427302502010104 20".replace(" ", ""))


def scalars():
    """Private scalars: first the ends of their range and the one whose multiplication is special, then random ones."""
    yield from (1, 2, 3, 6, 7, N - 2, N - 3, N - 6, N - 7, 1 << 255, (1 << 255) - 1)
    while True:
        yield random.SystemRandom().randint(1, N - 2)


def pkcs8(scalar):
    return PKCS8 + scalar.to_bytes(32, "big")


class Ours:
    """`examples/sm2_pipe`: our SM2, and that of the crate `sm2`."""

    def __init__(self, build):
        program = ROOT / f"target/{build}/examples/sm2_pipe"
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def use(self, scalar):
        self.ask("key", pkcs8(scalar))

    def encrypt(self, plaintext):
        return self.ask("encrypt", plaintext)

    def decrypt(self, ciphertext):
        return self.ask("decrypt", ciphertext)

    def ask(self, verb, data):
        """The answer; none if it was a refusal."""
        self.process.stdin.write(f"{verb} {data.hex()}\n".encode())
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "sm2_pipe ended"
        return None if answer == b"-\n" else bytes.fromhex(answer.decode())

    def close(self):
        self.process.stdin.close()
        assert self.process.wait() == 0


class OpenSSL:
    longest = 4096

    def use(self, scalar):
        pem = b"-----BEGIN PRIVATE KEY-----\n%s-----END PRIVATE KEY-----\n" % base64.encodebytes(pkcs8(scalar))
        self.encrypt = libcrypto.Key(pem, public=True).encrypt
        self.decrypt = libcrypto.Key(pem).decrypt


class Crate:
    longest = 4096

    def __init__(self, pipe):
        self.pipe = pipe

    def use(self, scalar):
        pass

    def encrypt(self, plaintext):
        return self.pipe.ask("crate-encrypt", plaintext)

    def decrypt(self, ciphertext):
        return self.pipe.ask("crate-decrypt", ciphertext)


class GmSSL:
    # The library's own limit.
    longest = 255

    def use(self, scalar):
        self.private = scalar.to_bytes(32, "big")
        self.public = public(scalar)

    def encrypt(self, plaintext):
        return gmssl_pyx.sm2_encrypt(self.public, plaintext)

    def decrypt(self, ciphertext):
        return gmssl_pyx.sm2_decrypt(self.private, ciphertext)


def public(scalar):
    """The public point of a private scalar, x and y, as OpenSSL computes it."""
    command = ["openssl", "pkey", "-inform", "DER", "-pubout", "-outform", "DER"]
    der = subprocess.run(command, input=pkcs8(scalar), capture_output=True, check=True).stdout
    return der[-64:]


def plaintext(longest, case):
    """One of any length: the shortest and the longest first."""
    return os.urandom({0: 1, 1: longest}.get(case) or random.randint(1, longest))
