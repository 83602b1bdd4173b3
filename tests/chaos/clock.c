/* A wall clock that is a number of seconds beside the true one; the file named by CHAOS_CLOCK says how many, at each
 * look. Safe in signal handlers, where PostgreSQL looks at its clock: under libfaketime a lease that a step of 20 s back
 * should have made 23 s did not end within a minute. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static char path[4096];

/* Kept: PostgreSQL writes its processes' titles over the environment. */
__attribute__((constructor)) static void begin(void)
{
    const char *given = getenv("CHAOS_CLOCK");
    if (given)
        strncpy(path, given, sizeof path - 1);
}

static long offset(void)
{
    char text[32] = {0};
    int file = path[0] ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    return length > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now)
        *now = precise.tv_sec;
    return precise.tv_sec;
}
