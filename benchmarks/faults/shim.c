/* Preloaded into every process of a stream under fault. In the folder that FAULTS_SHIM names:
 *   fsync_ms     makes each fsync and fdatasync last so many milliseconds longer, in every process
 *   clock-<pid>  moves the wall clock of one process by so many seconds
 *   clock        moves that of every process
 * Monotonic clocks stay, as they do when an operator sets the time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*real_gettime)(clockid_t, struct timespec *);

static void resolve(void) {
    if (!real_gettime) real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
}

static double number_in(const char *name) {
    const char *folder = getenv("FAULTS_SHIM");
    char path[512], text[32] = {0};
    if (!folder) return 0;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    return length > 0 ? atof(text) : 0;
}

static long offset_s(void) {
    static long next_look, offset;
    struct timespec now;
    char name[32];
    real_gettime(CLOCK_MONOTONIC, &now);
    long ms = now.tv_sec * 1000 + now.tv_nsec / 1000000;
    if (ms >= next_look) {
        next_look = ms + 50;
        snprintf(name, sizeof name, "clock-%d", getpid());
        offset = (long)(number_in(name) + number_in("clock"));
    }
    return offset;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    resolve();
    int result = real_gettime(clock, time);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += offset_s();
    return result;
}

int gettimeofday(struct timeval *time, void *zone) {
    struct timespec now;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

static int slowly(const char *name, int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, name);
    usleep((useconds_t)(number_in("fsync_ms") * 1000));
    return real(file);
}

int fsync(int file) { return slowly("fsync", file); }
int fdatasync(int file) { return slowly("fdatasync", file); }
