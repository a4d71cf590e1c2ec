#!/usr/bin/env python3
"""SM2 against three others: OpenSSL, the crate `sm2` and GmSSL. Each opens what we encrypt, and we what it encrypts.

SM2_CASES is how many in each direction with OpenSSL and with the crate, 10000 if it is not set; with GmSSL it is always
10000. SM2_PEERS says with whom (openssl,crate,gmssl if it is not set), SM2_BUILD with which build of the example
(debug). The length of each plaintext is any that both take. Every 500 cases the key changes; the first keys are at the
ends of the range. Every tenth ciphertext, with one bit flipped, must be refused.

Needs no server: the one argument is not looked at.
"""

import os
import random
import sys
import time

from common import run
from sm2_pairs import Crate, GmSSL, OpenSSL, Ours, plaintext, scalars

CASES = int(os.environ.get("SM2_CASES", "10000"))
PEERS = os.environ.get("SM2_PEERS", "openssl,crate,gmssl").split(",")
CASES_OF_A_KEY = 500


def openssl_and_we_open_what_the_other_encrypts():
    compare("openssl", OpenSSL(), CASES)


def the_sm2_crate_and_we_open_what_the_other_encrypts():
    compare("crate", Crate(ours), CASES)


def gmssl_and_we_open_what_the_other_encrypts():
    compare("gmssl", GmSSL(), 10_000)


def compare(name, theirs, cases):
    keys, began, refused = scalars(), time.monotonic(), 0
    for case in range(cases):
        # The first keys are special; a few cases of each show that.
        if case % CASES_OF_A_KEY == 0 or (case < CASES_OF_A_KEY and case % 20 == 0):
            key = next(keys)
            ours.use(key)
            theirs.use(key)
        message = plaintext(theirs.longest, case)
        told = f"{name}, key {key:x}, plaintext {message.hex()}"

        ciphertext = ours.encrypt(message)
        assert theirs.decrypt(ciphertext) == message, f"ours: {told}, ciphertext {ciphertext.hex()}"
        ciphertext = theirs.encrypt(message)
        assert ours.decrypt(ciphertext) == message, f"theirs: {told}, ciphertext {ciphertext.hex()}"

        if case % 10 == 0:
            altered = bytearray(ciphertext)
            bit = random.randrange(8 * len(altered))
            altered[bit // 8] ^= 1 << bit % 8
            assert ours.decrypt(altered) is None, f"altered: {told}, ciphertext {altered.hex()}"
            refused += 1
        if case % 50_000 == 49_999:
            report(f"{name}: {case + 1} in each direction so far, {time.monotonic() - began:.0f} s")
    report(f"{name}: {cases} in each direction, {refused} altered ones refused, {time.monotonic() - began:.0f} s")


def report(line):
    print(f"   {line}", file=sys.stderr, flush=True)


ours = Ours(os.environ.get("SM2_BUILD", "debug"))
checks = {
    "openssl": openssl_and_we_open_what_the_other_encrypts,
    "crate": the_sm2_crate_and_we_open_what_the_other_encrypts,
    "gmssl": gmssl_and_we_open_what_the_other_encrypts,
}
run([checks[name] for name in PEERS])
ours.close()
