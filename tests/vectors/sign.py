"""Signs the requests of tests/credentials.rs for which no published signature exists.

Written from the documented algorithm (contract, sections 6.3 and 6.4) with Python's own hashlib and
hmac, and shares nothing with the service. Any Python 3 runs it:

    python3 sign.py > sign.txt
"""

import hashlib
import hmac

ACCESS_KEY = "AKEXAMPLE0000000000"
SECRET_KEY = "SKEXAMPLEsecretsecretsecretsecretsecret"
DATE = "20261123T065328Z"
PATH = "/v1.0/53d1aefc533f4ce9a59c26b01667cbcf/kms/encrypt-data"
BODY = (
    b'{"key_id": "0d0466b0-e727-4d9c-b35d-f84bb474a37f", '
    b'"plain_text": "hello world", "encryption_algorithm": "SYMMETRIC_DEFAULT"}'
)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def mac(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def canonical(method, query, headers, payload):
    lines = [method, PATH + "/", query]
    lines += [f"{name}:{headers[name]}" for name in sorted(headers)]
    lines += ["", ";".join(sorted(headers)), payload]
    return sha256("\n".join(lines).encode())


def layout_a(method, query, headers, payload):
    form = canonical(method, query, headers, payload)
    signature = mac(SECRET_KEY.encode(), f"SDK-HMAC-SHA256\n{DATE}\n{form}")
    return authorization(f"Access={ACCESS_KEY}", headers, signature)


def layout_b(region, service, method, query, headers, payload):
    form = canonical(method, query, headers, payload)
    day = DATE[:8]
    scope = f"{day}/{region}/{service}/sdk_request"
    key = ("SDK" + SECRET_KEY).encode()
    for part in (day, region, service, "sdk_request"):
        key = mac(key, part)
    signature = mac(key, f"SDK-HMAC-SHA256\n{DATE}\n{scope}\n{form}")
    return authorization(f"Credential={ACCESS_KEY}/{scope}", headers, signature)


def authorization(who, headers, signature):
    names = ";".join(sorted(headers))
    return f"SDK-HMAC-SHA256 {who}, SignedHeaders={names}, Signature={signature.hex()}"


HEADERS = {
    "content-type": "application/json",
    "host": "127.0.0.1:18080",
    "x-sdk-date": DATE,
}
SPACED = HEADERS | {"user-agent": "two spaces and a tab"}
DATED = {"x-sdk-date": DATE}
HASHED = HEADERS | {"x-sdk-content-sha256": sha256(BODY)}
SHOUTED = HEADERS | {"x-sdk-content-sha256": sha256(BODY).upper()}
UNSIGNED = HEADERS | {"x-sdk-content-sha256": "UNSIGNED-PAYLOAD"}

print("LAYOUT_B", layout_b("", "", "POST", "", HEADERS, sha256(BODY)))
print("SCOPED", layout_b("local-1", "kms", "POST", "", HEADERS, sha256(BODY)))
print("SPACED", layout_b("", "", "POST", "", SPACED, sha256(BODY)))
print("DATED", layout_a("POST", "", DATED, sha256(BODY)))
print("HASHED", layout_a("POST", "", HASHED, sha256(BODY)))
print("SHOUTED", layout_a("POST", "", SHOUTED, sha256(BODY).upper()))
print("UNSIGNED", layout_a("POST", "", UNSIGNED, "UNSIGNED-PAYLOAD"))
print("QUERIED", layout_a("GET", "limit=2&marker=a%20b", HEADERS, sha256(b"")))
