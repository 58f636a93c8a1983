/* Preloaded into a run, this steps its wall clock by the seconds in the file $HIL_CHAOS_CLOCK. The
 * monotonic clock stays, and so does the time of sleeps. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long step(void)
{
	char text[32] = "";
	const char *path = getenv("HIL_CHAOS_CLOCK");
	int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

	if (file >= 0) {
		(void)!read(file, text, sizeof(text) - 1);
		close(file);
	}
	return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int status = syscall(SYS_clock_gettime, clock, now);

	if (!status && clock == CLOCK_REALTIME)
		now->tv_sec += step();
	return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec precise;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &precise);
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *into)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (into)
		*into = now.tv_sec;
	return now.tv_sec;
}
