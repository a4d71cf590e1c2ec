"""Makes openssl.json: keys and ciphertexts of OpenSSL's, which every provider must take.

Run it in this directory; it needs the `openssl` command, version 3. Keys are made once and kept,
so that a second run changes the ciphertexts alone. It runs, for each key:

    openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:BITS -out rsa_BITS.pem
    openssl genpkey -algorithm SM2 -out sm2.pem
    openssl pkey -in KEY -pubout -outform DER
    openssl pkeyutl -encrypt -inkey KEY [-pkeyopt rsa_padding_mode:oaep
        -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256]
"""

import base64
import json
import pathlib
import subprocess

OAEP = ["rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha256"]

KEYS = [
    ("RSA_2048", "rsa_2048.pem", ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], OAEP, 190),
    ("RSA_3072", "rsa_3072.pem", ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"], OAEP, 318),
    ("RSA_4096", "rsa_4096.pem", ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096"], OAEP, 446),
    ("SM2", "sm2.pem", ["-algorithm", "SM2"], [], 4096),
]


def main():
    keys = []
    for spec, file, how, options, limit in KEYS:
        if not pathlib.Path(file).exists():
            openssl("genpkey", *how, "-out", file)
        flags = [flag for option in options for flag in ("-pkeyopt", option)]
        messages = [bytes(i % 251 for i in range(n)) for n in sorted({1, 11, 16, 32, 33, limit})]
        keys.append({
            "spec": spec,
            "private_key": file,
            "public_key": text(openssl("pkey", "-in", file, "-pubout", "-outform", "DER")),
            "ciphertexts": [
                {
                    "plaintext": text(message),
                    "ciphertext": text(
                        openssl("pkeyutl", "-encrypt", "-inkey", file, *flags, given=message)
                    ),
                }
                for message in messages
            ],
        })
    document = {"made_by": openssl("version").decode().strip(), "keys": keys}
    pathlib.Path("openssl.json").write_text(json.dumps(document, indent=1) + "\n")


def openssl(*arguments, given=b""):
    return subprocess.run(["openssl", *arguments], input=given, stdout=subprocess.PIPE, check=True).stdout


def text(data):
    return base64.b64encode(data).decode()


if __name__ == "__main__":
    main()
