/* Makes a host fail under one process, from outside and while it runs: calls on chosen files, and the wall clock.
 *
 * Preloaded (LD_PRELOAD). What is to fail stands in a file that is mapped shared, HOST_FAULTS names it; __init__.py beside this file
 * writes it and has the same layout. Only calls through the C library are reached, which are all that Python, SQLite and OpenSSL make.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define RULES 16
#define SECOND_NS 1000000000LL
#define EXPORT __attribute__((visibility("default")))

enum call { OPEN_TO_READ = 1, OPEN_TO_WRITE = 2, CREATE = 4, READ = 8, WRITE = 16, SYNC = 32, NAME = 64, ASK = 128 };
enum clock { AS_IS = 0, SHIFTED = 1, STANDING = 2 };

struct rule {
    uint32_t armed;
    int32_t number;      /* errno */
    uint32_t calls;      /* of enum call */
    uint32_t struck;     /* how many calls failed by it */
    char where[240];     /* fnmatch pattern of the whole path */
};

struct control {
    uint32_t clock;
    uint32_t any_armed;
    int64_t clock_ns;    /* shift, or where it stands */
    struct rule rules[RULES];
};

static struct control *control;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("HOST_FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *found = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (found != MAP_FAILED)
        control = found;
}

static int fails(const char *path, uint32_t call)
{
    if (!control || !__atomic_load_n(&control->any_armed, __ATOMIC_ACQUIRE) || !path)
        return 0;
    for (int i = 0; i < RULES; i++) {
        struct rule *rule = &control->rules[i];
        if (__atomic_load_n(&rule->armed, __ATOMIC_ACQUIRE) && (rule->calls & call) && !fnmatch(rule->where, path, 0)) {
            __atomic_add_fetch(&rule->struck, 1, __ATOMIC_RELAXED);
            errno = rule->number;
            return 1;
        }
    }
    return 0;
}

static int fails_fd(int fd, uint32_t call)
{
    char link[64], path[PATH_MAX];
    if (!control || !__atomic_load_n(&control->any_armed, __ATOMIC_ACQUIRE))
        return 0;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    int before = errno;
    ssize_t length = readlink(link, path, sizeof(path) - 1);
    errno = before;
    if (length < 0)
        return 0;
    path[length] = 0;
    return fails(path, call);
}

#define REAL(type, name, ...)                                            \
    static type (*real)(__VA_ARGS__);                                    \
    if (!real)                                                           \
        real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int fails_open(const char *path, int flags)
{
    uint32_t call = (flags & O_ACCMODE) == O_RDONLY ? OPEN_TO_READ : OPEN_TO_WRITE;
    int before = errno;
    if ((flags & O_CREAT) && access(path, F_OK) != 0)
        call |= CREATE;
    errno = before;
    return fails(path, call);
}

#define MODE(flags, last) ((flags) & (O_CREAT | O_TMPFILE) ? va_arg(last, mode_t) : 0)

#define OPENS(name)                                                      \
    EXPORT int name(const char *path, int flags, ...)                    \
    {                                                                    \
        REAL(int, #name, const char *, int, ...);                        \
        va_list more;                                                    \
        va_start(more, flags);                                           \
        mode_t mode = MODE(flags, more);                                 \
        va_end(more);                                                    \
        return fails_open(path, flags) ? -1 : real(path, flags, mode);   \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                   \
    EXPORT int name(int dir, const char *path, int flags, ...)           \
    {                                                                    \
        REAL(int, #name, int, const char *, int, ...);                   \
        va_list more;                                                    \
        va_start(more, flags);                                           \
        mode_t mode = MODE(flags, more);                                 \
        va_end(more);                                                    \
        return fails_open(path, flags) ? -1 : real(dir, path, flags, mode); \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

#define FOPENS(name)                                                     \
    EXPORT FILE *name(const char *path, const char *mode)                \
    {                                                                    \
        REAL(FILE *, #name, const char *, const char *);                 \
        return fails(path, strpbrk(mode, "wa+") ? OPEN_TO_WRITE : OPEN_TO_READ) ? NULL : real(path, mode); \
    }
FOPENS(fopen)
FOPENS(fopen64)

#define ON_FD(type, name, call, parameters, arguments, ...)              \
    EXPORT type name parameters                                          \
    {                                                                    \
        REAL(type, #name, __VA_ARGS__);                                  \
        if (fails_fd(fd, call))                                          \
            return -1;                                                   \
        return real arguments;                                           \
    }
ON_FD(ssize_t, read, READ, (int fd, void *b, size_t n), (fd, b, n), int, void *, size_t)
ON_FD(ssize_t, pread, READ, (int fd, void *b, size_t n, off_t o), (fd, b, n, o), int, void *, size_t, off_t)
ON_FD(ssize_t, pread64, READ, (int fd, void *b, size_t n, off64_t o), (fd, b, n, o), int, void *, size_t, off64_t)
ON_FD(ssize_t, preadv, READ, (int fd, const struct iovec *v, int n, off_t o), (fd, v, n, o), int, const struct iovec *, int, off_t)
ON_FD(ssize_t, preadv64, READ, (int fd, const struct iovec *v, int n, off64_t o), (fd, v, n, o), int, const struct iovec *, int, off64_t)
ON_FD(ssize_t, write, WRITE, (int fd, const void *b, size_t n), (fd, b, n), int, const void *, size_t)
ON_FD(ssize_t, writev, WRITE, (int fd, const struct iovec *v, int n), (fd, v, n), int, const struct iovec *, int)
ON_FD(ssize_t, pwrite, WRITE, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), int, const void *, size_t, off_t)
ON_FD(ssize_t, pwrite64, WRITE, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o), int, const void *, size_t, off64_t)
ON_FD(ssize_t, pwritev, WRITE, (int fd, const struct iovec *v, int n, off_t o), (fd, v, n, o), int, const struct iovec *, int, off_t)
ON_FD(ssize_t, pwritev64, WRITE, (int fd, const struct iovec *v, int n, off64_t o), (fd, v, n, o), int, const struct iovec *, int, off64_t)
ON_FD(ssize_t, preadv2, READ, (int fd, const struct iovec *v, int n, off_t o, int f), (fd, v, n, o, f), int, const struct iovec *, int, off_t, int)
ON_FD(ssize_t, preadv64v2, READ, (int fd, const struct iovec *v, int n, off64_t o, int f), (fd, v, n, o, f), int, const struct iovec *, int, off64_t, int)
ON_FD(ssize_t, pwritev2, WRITE, (int fd, const struct iovec *v, int n, off_t o, int f), (fd, v, n, o, f), int, const struct iovec *, int, off_t, int)
ON_FD(ssize_t, pwritev64v2, WRITE, (int fd, const struct iovec *v, int n, off64_t o, int f), (fd, v, n, o, f), int, const struct iovec *, int, off64_t, int)
ON_FD(int, ftruncate, WRITE, (int fd, off_t n), (fd, n), int, off_t)
ON_FD(int, ftruncate64, WRITE, (int fd, off64_t n), (fd, n), int, off64_t)
ON_FD(int, fallocate, WRITE, (int fd, int m, off_t o, off_t n), (fd, m, o, n), int, int, off_t, off_t)
ON_FD(int, fallocate64, WRITE, (int fd, int m, off64_t o, off64_t n), (fd, m, o, n), int, int, off64_t, off64_t)
ON_FD(int, fsync, SYNC, (int fd), (fd), int)
ON_FD(int, fdatasync, SYNC, (int fd), (fd), int)

#define ON_PATH(name, call, parameters, path, arguments, ...)            \
    EXPORT int name parameters                                           \
    {                                                                    \
        REAL(int, #name, __VA_ARGS__);                                   \
        if (fails(path, call))                                           \
            return -1;                                                   \
        return real arguments;                                           \
    }
ON_PATH(unlink, NAME, (const char *p), p, (p), const char *)
ON_PATH(unlinkat, NAME, (int d, const char *p, int f), p, (d, p, f), int, const char *, int)
ON_PATH(mkdir, CREATE, (const char *p, mode_t m), p, (p, m), const char *, mode_t)
ON_PATH(rename, NAME, (const char *p, const char *t), t, (p, t), const char *, const char *)
ON_PATH(renameat, NAME, (int d, const char *p, int e, const char *t), t, (d, p, e, t), int, const char *, int, const char *)
ON_PATH(link, CREATE, (const char *p, const char *t), t, (p, t), const char *, const char *)
ON_PATH(linkat, CREATE, (int d, const char *p, int e, const char *t, int f), t, (d, p, e, t, f), int, const char *, int, const char *, int)
ON_PATH(statvfs, ASK, (const char *p, struct statvfs *s), p, (p, s), const char *, struct statvfs *)
ON_PATH(statvfs64, ASK, (const char *p, struct statvfs64 *s), p, (p, s), const char *, struct statvfs64 *)

/* ---- the wall clock; the others stay ---- */

static int is_set(int64_t real_ns, int64_t *shown_ns)
{
    switch (control ? __atomic_load_n(&control->clock, __ATOMIC_ACQUIRE) : AS_IS) {
    case SHIFTED:
        *shown_ns = real_ns + control->clock_ns;
        return 1;
    case STANDING:
        *shown_ns = control->clock_ns;
        return 1;
    default:
        return 0;
    }
}

EXPORT int clock_gettime(clockid_t id, struct timespec *time)
{
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int result = real(id, time);
    int64_t ns;
    if (!result && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) &&
        is_set(time->tv_sec * SECOND_NS + time->tv_nsec, &ns)) {
        time->tv_sec = ns / SECOND_NS;
        time->tv_nsec = ns % SECOND_NS;
    }
    return result;
}

EXPORT int gettimeofday(struct timeval *restrict time, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

EXPORT time_t time(time_t *seconds)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (seconds)
        *seconds = now.tv_sec;
    return now.tv_sec;
}
