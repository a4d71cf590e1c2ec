/* A PKCS#11 module in front of another, FAILING_MODULE, that fails as files in the directory FAILING_HOW say:
 *
 *   hang    C_Decrypt does not return while the file is there
 *   init    C_DecryptInit fails while the file is there
 *   once    C_Decrypt says that the device failed; once
 *   two     C_OpenSession says that there are too many sessions if two are open
 *   none    C_OpenSession says so in any case
 *   out     C_FindObjectsInit logs out before it searches; once
 *   lacks   C_FindObjects finds nothing if it was given more than one attribute
 *   gone    C_GenerateKeyPair makes the pair, and says that the token was taken away; once
 *
 * Built by `cc -shared -fPIC`. It needs nothing but the order of the functions in CK_FUNCTION_LIST (PKCS#11
 * 2.40, section 3.6). */
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef unsigned long number;
struct functions {
  unsigned char version[2];
  number (*all[68])();
};
enum {
  FINALIZE = 1,
  OPEN_SESSION = 12,
  CLOSE_SESSION = 13,
  LOGOUT = 19,
  FIND_OBJECTS_INIT = 26,
  FIND_OBJECTS = 27,
  DECRYPT_INIT = 33,
  DECRYPT = 34,
  GENERATE_KEY_PAIR = 59
};
enum { DEVICE_ERROR = 0x30, DEVICE_REMOVED = 0x32, KEY_FUNCTION_NOT_PERMITTED = 0x68, SESSION_COUNT = 0xb1 };

static struct functions real, ours;

static const char *path(const char *name) {
  static _Thread_local char path[4096];
  snprintf(path, sizeof path, "%s/%s", getenv("FAILING_HOW"), name);
  return path;
}

static atomic_int sessions;

static number finalize(void *reserved) {
  sessions = 0;
  return real.all[FINALIZE](reserved);
}

static number open_session(number slot, number flags, void *application, void *notify, number *session) {
  if (access(path("none"), F_OK) == 0 || (sessions >= 2 && access(path("two"), F_OK) == 0))
    return SESSION_COUNT;
  number result = real.all[OPEN_SESSION](slot, flags, application, notify, session);
  sessions += result == 0;
  return result;
}

static number close_session(number session) {
  sessions--;
  return real.all[CLOSE_SESSION](session);
}

static _Thread_local int lacking;

static number find_objects_init(number session, void *template, number attributes) {
  if (unlink(path("out")) == 0)
    real.all[LOGOUT](session);
  lacking = attributes > 1 && access(path("lacks"), F_OK) == 0;
  return real.all[FIND_OBJECTS_INIT](session, template, attributes);
}

static number find_objects(number session, number *objects, number room, number *found) {
  number result = real.all[FIND_OBJECTS](session, objects, room, found);
  if (lacking)
    *found = 0;
  return result;
}

static number decrypt_init(number session, void *mechanism, number key) {
  return access(path("init"), F_OK) == 0 ? KEY_FUNCTION_NOT_PERMITTED
                                         : real.all[DECRYPT_INIT](session, mechanism, key);
}

static number decrypt(number session, void *from, number length, void *to, number *room) {
  while (access(path("hang"), F_OK) == 0)
    usleep(10000);
  number result = real.all[DECRYPT](session, from, length, to, room);
  return to != NULL && unlink(path("once")) == 0 ? DEVICE_ERROR : result;
}

static number generate_key_pair(number session, void *mechanism, void *public, number publics, void *private,
                                number privates, number *made_public, number *made_private) {
  number result = real.all[GENERATE_KEY_PAIR](session, mechanism, public, publics, private, privates, made_public,
                                              made_private);
  return result == 0 && unlink(path("gone")) == 0 ? DEVICE_REMOVED : result;
}

number C_GetFunctionList(struct functions **list) {
  void *module = dlopen(getenv("FAILING_MODULE"), RTLD_NOW);
  number (*get)(struct functions **) = module ? (number(*)(struct functions **))dlsym(module, __func__) : NULL;
  struct functions *found;
  if (get == NULL || get(&found) != 0)
    return 5;
  real = ours = *found;
  ours.all[FINALIZE] = finalize;
  ours.all[OPEN_SESSION] = open_session;
  ours.all[CLOSE_SESSION] = close_session;
  ours.all[FIND_OBJECTS_INIT] = find_objects_init;
  ours.all[FIND_OBJECTS] = find_objects;
  ours.all[DECRYPT_INIT] = decrypt_init;
  ours.all[DECRYPT] = decrypt;
  ours.all[GENERATE_KEY_PAIR] = generate_key_pair;
  *list = &ours;
  return 0;
}
