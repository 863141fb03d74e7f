/* A disk that has faults, for tests: preloaded into a daemon (LD_PRELOAD), it spoils what is written to the log.

   What it does stands in the file that $FAULT_DISK names, which it reads again at every call, so that a test can
   fill the disk and make room while the daemon runs. Its first word:
     full        no write finds room (ENOSPC)
     readonly    every write meets a read-only file system (EROFS)
     slow MS     each sync takes so many milliseconds
     broken      each sync fails (EIO)
   Anything else, or no such file: all is well. Only files of the log are spoiled: those with `.db` in their names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, STATE_BYTES = 64 };

static int is_of_the_log(int file) {
    char link[64], path[PATH_BYTES];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return strstr(path, ".db") != NULL;
}

/* The first word of the state, and the number behind it. */
static int look(int file, char word[STATE_BYTES]) {
    const char *path = getenv("FAULT_DISK");
    int number = 0;
    word[0] = 0;
    FILE *state = path && is_of_the_log(file) ? fopen(path, "re") : NULL;
    if (state == NULL) return 0;
    if (fscanf(state, "%63s %d", word, &number) < 1) word[0] = 0;
    fclose(state);
    return number;
}

static int refuses_writes(int file) {
    char word[STATE_BYTES];
    look(file, word);
    errno = strcmp(word, "full") == 0 ? ENOSPC : strcmp(word, "readonly") == 0 ? EROFS : 0;
    return errno;
}

static int refuses_syncs(int file) {
    char word[STATE_BYTES];
    int pause_ms = look(file, word);
    if (strcmp(word, "slow") == 0) usleep(pause_ms * 1000);
    errno = strcmp(word, "broken") == 0 ? EIO : 0;
    return errno;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    return refuses_writes(file) ? -1 : REAL(pwrite64)(file, data, size, at);
}

ssize_t write(int file, const void *data, size_t size) {
    return refuses_writes(file) ? -1 : REAL(write)(file, data, size);
}

int ftruncate64(int file, off64_t size) { return refuses_writes(file) ? -1 : REAL(ftruncate64)(file, size); }

int fdatasync(int file) { return refuses_syncs(file) ? -1 : REAL(fdatasync)(file); }

int fsync(int file) { return refuses_syncs(file) ? -1 : REAL(fsync)(file); }
