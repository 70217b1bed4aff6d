/* What a disk can do to a program that writes: an LD_PRELOAD library that counts the writing calls below one folder and
 * lets the n-th of them fail, kills the process there, or takes from it what was not flushed, as a power cut does.
 *
 * Nothing happens before faults_arm; a child that was forked arms its own copy.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum fault { NOTHING, FAIL_ONCE, FAIL_ON, KILL, KILL_HALFWAY, POWER_CUT, POWER_CUT_ZEROS };
enum { NO_SPACE_NEEDED, SPACE_NEEDED };

static char root[PATH_MAX];
static size_t root_length;
static enum fault fault;
static int error;
static long wanted, count;
static int armed, full;
static char trace[1 << 16];
static size_t traced;

/* files that were written, by an own descriptor each: what is past `flushed` is lost in a power cut */
static struct { dev_t dev; ino_t ino; int fd; off_t flushed; } dirty[4096];
static int dirty_count;

#define REAL(type, name, ...) \
    static type (*real_##name)(__VA_ARGS__); \
    if (!real_##name) real_##name = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

void faults_arm(const char *folder, long nth, int kind, int number) {
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    wanted = nth, fault = (enum fault)kind, error = number;
    count = 0, full = 0, traced = 0, dirty_count = 0, armed = 1;
}

/* one line an operation: its name and path */
const char *faults_trace(void) { return trace; }

static int inside(const char *path) {
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int below(const char *path) {
    char folder[PATH_MAX];
    if (!armed || !path) return 0;
    return inside(path[0] == '/' || !getcwd(folder, sizeof folder) ? path : folder);
}

static const char *path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

static int find(int fd, struct stat *now) {
    if (fstat(fd, now) || !S_ISREG(now->st_mode)) return -2;
    for (int i = 0; i < dirty_count; i++)
        if (dirty[i].dev == now->st_dev && dirty[i].ino == now->st_ino) return i;
    return -1;
}

/* before a file is changed for the first time: what it holds is on the disk */
static void note_written(int fd) {
    struct stat now;
    if (fault >= POWER_CUT && find(fd, &now) == -1 && dirty_count < 4096) {
        int own = fcntl(fd, F_DUPFD_CLOEXEC, 500);
        dirty[dirty_count].dev = now.st_dev, dirty[dirty_count].ino = now.st_ino;
        dirty[dirty_count].fd = own, dirty[dirty_count++].flushed = now.st_size;
    }
}

static void note_flushed(int fd) {
    struct stat now;
    int i = find(fd, &now);
    if (i >= 0) dirty[i].flushed = now.st_size;
}

/* what was not flushed is cut off; or the files keep their length, and the later half of it is zeros */
static void cut_power(void) {
    armed = 0;
    for (int i = 0; i < dirty_count; i++) {
        struct stat now;
        off_t from = dirty[i].flushed;
        if (fstat(dirty[i].fd, &now) || now.st_size <= from) continue;
        if (fault == POWER_CUT_ZEROS) from += (now.st_size - from) / 2;
        if (ftruncate(dirty[i].fd, from)) abort();
        if (fault == POWER_CUT_ZEROS && ftruncate(dirty[i].fd, now.st_size)) abort();
    }
    raise(SIGKILL);
}

/* all is done and was said: the point after the last operation */
void faults_end(void) {
    if (count + 1 == wanted && fault >= POWER_CUT) cut_power();
    armed = 0;
}

/* 0: go on; 1: fail with errno; 2: do half of it, then die */
static int struck(const char *name, const char *path, int space) {
    count++;
    if (traced < sizeof trace - PATH_MAX - 32)
        traced += (size_t)snprintf(trace + traced, sizeof trace - traced, "%s %.4000s\n", name, path);
    if (count == wanted) {
        switch (fault) {
        case FAIL_ON: full = 1; /* fall through */
        case FAIL_ONCE: errno = error; return 1;
        case KILL: raise(SIGKILL); break;
        case KILL_HALFWAY: return 2;
        case POWER_CUT: case POWER_CUT_ZEROS: cut_power(); break;
        case NOTHING: break;
        }
    }
    if (full && space == SPACE_NEEDED) { errno = error; return 1; }
    return 0;
}

static void die(void) { raise(SIGKILL); }

/* -- files ---------------------------------------------------------------------------------------------------------- */

#define OPENED(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = va_arg(list, mode_t); \
        va_end(list); \
        if ((flags & O_ACCMODE) != O_RDONLY && below(path)) { \
            int s = struck(flags & O_CREAT ? "create" : "open", path, SPACE_NEEDED); \
            if (s == 1) return -1; \
            if (s == 2) { real_##name(path, flags, mode); die(); } \
        } \
        return real_##name(path, flags, mode); \
    }
OPENED(open)
OPENED(open64)

#define OPENED_AT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(int, name, int, const char *, int, ...); \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = va_arg(list, mode_t); \
        va_end(list); \
        if ((flags & O_ACCMODE) != O_RDONLY && below(path)) { \
            int s = struck("create", path, SPACE_NEEDED); \
            if (s == 1) return -1; \
            if (s == 2) { real_##name(at, path, flags, mode); die(); } \
        } \
        return real_##name(at, path, flags, mode); \
    }
OPENED_AT(openat)
OPENED_AT(openat64)

#define ON_FILE(name, fd, space) \
    char path_##fd[PATH_MAX]; \
    int s = armed && below(path_of(fd, path_##fd)) ? struck(name, path_##fd, space) : 0; \
    if (s == 1) return -1; \
    if (armed && below(path_##fd)) note_written(fd)

ssize_t write(int fd, const void *bytes, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (!armed) return real_write(fd, bytes, size);
    ON_FILE("write", fd, SPACE_NEEDED);
    if (s == 2) { if (real_write(fd, bytes, size / 2) >= 0) die(); die(); }
    return real_write(fd, bytes, size);
}

#define WRITTEN_AT(name, offset_type) \
    ssize_t name(int fd, const void *bytes, size_t size, offset_type offset) { \
        REAL(ssize_t, name, int, const void *, size_t, offset_type); \
        if (!armed) return real_##name(fd, bytes, size, offset); \
        ON_FILE("pwrite", fd, SPACE_NEEDED); \
        if (s == 2) { if (real_##name(fd, bytes, size / 2, offset) >= 0) die(); die(); } \
        return real_##name(fd, bytes, size, offset); \
    }
WRITTEN_AT(pwrite, off_t)
WRITTEN_AT(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int number) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    if (!armed) return real_writev(fd, parts, number);
    ON_FILE("writev", fd, SPACE_NEEDED);
    if (s == 2) die();
    return real_writev(fd, parts, number);
}

#define SENT(name, offset_type) \
    ssize_t name(int fd, int from, offset_type *offset, size_t size) { \
        REAL(ssize_t, name, int, int, offset_type *, size_t); \
        if (!armed) return real_##name(fd, from, offset, size); \
        ON_FILE("sendfile", fd, SPACE_NEEDED); \
        if (s == 2) { if (real_##name(fd, from, offset, size / 2) >= 0) die(); die(); } \
        return real_##name(fd, from, offset, size); \
    }
SENT(sendfile, off_t)
SENT(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *a, int fd, off64_t *b, size_t size, unsigned flags) {
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    if (!armed) return real_copy_file_range(from, a, fd, b, size, flags);
    ON_FILE("copy_file_range", fd, SPACE_NEEDED);
    if (s == 2) die();
    return real_copy_file_range(from, a, fd, b, size, flags);
}

#define FLUSHED(name) \
    int name(int fd) { \
        REAL(int, name, int); \
        if (!armed) return real_##name(fd); \
        char path[PATH_MAX]; \
        int s = below(path_of(fd, path)) ? struck(#name, path, NO_SPACE_NEEDED) : 0; \
        if (s == 1) return -1; \
        if (s == 2) die(); \
        note_flushed(fd); \
        return below(path) ? 0 : real_##name(fd); /* the disk's own pace is not what is tried */ \
    }
FLUSHED(fsync)
FLUSHED(fdatasync)

#define CUT(name, offset_type) \
    int name(int fd, offset_type size) { \
        REAL(int, name, int, offset_type); \
        if (!armed) return real_##name(fd, size); \
        ON_FILE("ftruncate", fd, SPACE_NEEDED); \
        if (s == 2) die(); \
        return real_##name(fd, size); \
    }
CUT(ftruncate, off_t)
CUT(ftruncate64, off64_t)

#define RESERVED(name, offset_type) \
    int name(int fd, offset_type offset, offset_type size) { \
        REAL(int, name, int, offset_type, offset_type); \
        char path[PATH_MAX]; \
        if (armed && below(path_of(fd, path))) { \
            int s = struck("fallocate", path, SPACE_NEEDED); \
            if (s == 1) return error; /* it gives errno back */ \
            if (s == 2) die(); \
        } \
        return real_##name(fd, offset, size); \
    }
RESERVED(posix_fallocate, off_t)
RESERVED(posix_fallocate64, off64_t)

/* -- names ---------------------------------------------------------------------------------------------------------- */

#define NAMED(name, label, space, parameters, path, arguments, ...) \
    int name parameters { \
        REAL(int, name, __VA_ARGS__); \
        if (below(path)) { \
            int s = struck(label, path, space); \
            if (s == 1) return -1; \
            if (s == 2) { real_##name arguments; die(); } \
        } \
        return real_##name arguments; \
    }
NAMED(rename, "rename", NO_SPACE_NEEDED, (const char *old, const char *new), new, (old, new), const char *, const char *)
NAMED(renameat, "rename", NO_SPACE_NEEDED, (int a, const char *old, int b, const char *new), new, (a, old, b, new), int,
      const char *, int, const char *)
NAMED(link, "link", SPACE_NEEDED, (const char *old, const char *new), new, (old, new), const char *, const char *)
NAMED(unlink, "unlink", NO_SPACE_NEEDED, (const char *path), path, (path), const char *)
NAMED(rmdir, "rmdir", NO_SPACE_NEEDED, (const char *path), path, (path), const char *)
NAMED(mkdir, "mkdir", SPACE_NEEDED, (const char *path, mode_t mode), path, (path, mode), const char *, mode_t)

/* shutil.rmtree names files within an open folder */
int unlinkat(int at, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    char folder[PATH_MAX];
    if (armed && (at == AT_FDCWD ? below(path) : below(path_of(at, folder)))) {
        int s = struck("unlink", path, NO_SPACE_NEEDED);
        if (s == 1) return -1;
        if (s == 2) { real_unlinkat(at, path, flags); die(); }
    }
    return real_unlinkat(at, path, flags);
}
