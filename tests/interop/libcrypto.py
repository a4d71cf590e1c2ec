"""Keys in the hands of OpenSSL's libcrypto, without a process for each operation."""

import ctypes

crypto = ctypes.CDLL("libcrypto.so.3")


def declare(name, result, *arguments):
    function = getattr(crypto, name)
    function.restype, function.argtypes = result, arguments


pointer, text = ctypes.c_void_p, ctypes.c_char_p
size = ctypes.POINTER(ctypes.c_size_t)
declare("BIO_new_mem_buf", pointer, text, ctypes.c_int)
declare("BIO_free", ctypes.c_int, pointer)
declare("PEM_read_bio_PUBKEY", pointer, pointer, pointer, pointer, pointer)
declare("PEM_read_bio_PrivateKey", pointer, pointer, pointer, pointer, pointer)
declare("EVP_PKEY_free", None, pointer)
declare("EVP_PKEY_CTX_new", pointer, pointer, pointer)
declare("EVP_PKEY_CTX_free", None, pointer)
declare("EVP_PKEY_CTX_ctrl_str", ctypes.c_int, pointer, text, text)
declare("EVP_PKEY_encrypt_init", ctypes.c_int, pointer)
declare("EVP_PKEY_encrypt", ctypes.c_int, pointer, text, size, text, ctypes.c_size_t)
declare("EVP_PKEY_decrypt_init", ctypes.c_int, pointer)
declare("EVP_PKEY_decrypt", ctypes.c_int, pointer, text, size, text, ctypes.c_size_t)
declare("OpenSSL_version", text, ctypes.c_int)


def version():
    return crypto.OpenSSL_version(0).decode()


class Key:
    """A key in OpenSSL's hands: to encrypt, or its private half to decrypt."""

    def __init__(self, pem, parameters=(), public=None):
        public = b"PUBLIC KEY" in pem if public is None else public
        bio = crypto.BIO_new_mem_buf(pem, len(pem))
        read = crypto.PEM_read_bio_PUBKEY if b"PUBLIC KEY" in pem else crypto.PEM_read_bio_PrivateKey
        key = read(bio, None, None, None)
        crypto.BIO_free(bio)
        assert key, f"OpenSSL cannot read {pem!r}"
        self.context = crypto.EVP_PKEY_CTX_new(key, None)
        crypto.EVP_PKEY_free(key)  # The context holds on to it.
        start = crypto.EVP_PKEY_encrypt_init if public else crypto.EVP_PKEY_decrypt_init
        assert start(self.context) == 1
        for name, value in dict(parameters).items():
            assert crypto.EVP_PKEY_CTX_ctrl_str(self.context, name.encode(), value.encode()) > 0, name
        self.out = ctypes.create_string_buffer(8192)

    def __del__(self):
        crypto.EVP_PKEY_CTX_free(self.context)

    def encrypt(self, plaintext):
        return self.work(crypto.EVP_PKEY_encrypt, plaintext)

    def decrypt(self, ciphertext):
        return self.work(crypto.EVP_PKEY_decrypt, ciphertext)

    def work(self, function, data):
        length = ctypes.c_size_t(len(self.out))
        assert function(self.context, self.out, ctypes.byref(length), data, len(data)) == 1, data.hex()
        return ctypes.string_at(self.out, length.value)
