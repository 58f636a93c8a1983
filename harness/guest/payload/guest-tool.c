/*
 * hil: the guest's end of the harness. One static program, five verbs.
 *
 *   hil run NONCE COMMAND     run COMMAND with /bin/sh; print its output and status as one frame
 *   hil mmio FILE OP...       reads and writes of a mapped file (a BAR's resourceN, /dev/mem)
 *   hil kexec IMAGE INITRD CMDLINE   load a kernel and jump into it
 *   hil fifo PRIORITY COMMAND...     run COMMAND under SCHED_FIFO
 *   hil pin                   print the physical address of a zeroed page; keep it until killed
 *
 * A frame is  ~HIL:NONCE:<base64 of output and error>:STATUS:CRC32~  on lines of its own. Neither
 * '[' nor a space is in it, so the harness can take out kernel messages printed in its middle.
 *
 * An OP of mmio is  w32:OFFSET=VALUE | w64:… | r32:OFFSET | r64:OFFSET | until32:OFFSET&MASK=VALUE
 * (polls, five seconds at most) | pause:MS | repeat:N (do the OPs before it N times in all).
 * All numbers as strtoull takes them. Each read prints one hexadecimal number on its own line.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/reboot.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "hil: %s: %s\n", what, strerror(errno));
	exit(1);
}

static _Noreturn void usage(const char *what)
{
	fprintf(stderr, "hil: %s\n", what);
	exit(2);
}

/* -- run ------------------------------------------------------------------------------------- */

static uint32_t crc32(uint32_t crc, const unsigned char *data, size_t length)
{
	crc = ~crc;
	while (length--) {
		crc ^= *data++;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (0xedb88320u & -(crc & 1));
	}
	return ~crc;
}

/* A multiple of 3, so that only the last chunk is padded. */
enum { CHUNK = 3 * 1024 };

static void put_base64(const unsigned char *data, size_t length)
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

	for (size_t i = 0; i < length; i += 3) {
		uint32_t word = data[i] << 16;

		if (i + 1 < length)
			word |= data[i + 1] << 8;
		if (i + 2 < length)
			word |= data[i + 2];
		putchar(digits[word >> 18]);
		putchar(digits[word >> 12 & 63]);
		putchar(i + 1 < length ? digits[word >> 6 & 63] : '=');
		putchar(i + 2 < length ? digits[word & 63] : '=');
	}
	putchar('\n');
}

static size_t read_full(int fd, unsigned char *buffer, size_t size)
{
	size_t got = 0;

	while (got < size) {
		ssize_t n = read(fd, buffer + got, size - got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		got += n;
	}
	return got;
}

static int run(const char *nonce, const char *command)
{
	unsigned char buffer[CHUNK];
	uint32_t crc = 0;
	int ends[2], status;
	size_t got;
	pid_t pid;

	if (pipe(ends))
		die("pipe");
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		int null = open("/dev/null", O_RDONLY);

		dup2(null, 0);
		dup2(ends[1], 1);
		dup2(ends[1], 2);
		close(ends[0]);
		close(ends[1]);
		execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	close(ends[1]);
	printf("\n~HIL:%s:\n", nonce);
	while ((got = read_full(ends[0], buffer, CHUNK)) > 0) {
		crc = crc32(crc, buffer, got);
		put_base64(buffer, got);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	printf(":%d:%08x~\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), crc);
	return 0;
}

/* -- mmio ------------------------------------------------------------------------------------ */

struct op {
	enum { WRITE, READ, UNTIL, PAUSE, REPEAT } kind;
	int width;
	uint64_t offset, mask, value;
};

static uint64_t number(const char **text, char end)
{
	char *stop;
	uint64_t value = strtoull(*text, &stop, 0);

	if (stop == *text || *stop != end)
		usage("malformed OP");
	*text = stop + (end != '\0');
	return value;
}

static struct op parse(const char *text)
{
	struct op op = { .width = 4 };

	if (!strncmp(text, "repeat:", 7) || !strncmp(text, "pause:", 6)) {
		op.kind = *text == 'r' ? REPEAT : PAUSE;
		text = strchr(text, ':') + 1;
		op.value = number(&text, '\0');
		return op;
	}
	if (!strncmp(text, "until32:", 8)) {
		op.kind = UNTIL;
		text = strchr(text, ':') + 1;
		op.offset = number(&text, '&');
		op.mask = number(&text, '=');
		op.value = number(&text, '\0');
		return op;
	}
	if ((*text != 'r' && *text != 'w') || (strncmp(text + 1, "32:", 3) && strncmp(text + 1, "64:", 3)))
		usage("an OP is w32:O=V, w64:O=V, r32:O, r64:O, until32:O&M=V, pause:MS or repeat:N");
	op.kind = *text == 'w' ? WRITE : READ;
	op.width = text[1] == '6' ? 8 : 4;
	text += 4;
	op.offset = number(&text, op.kind == WRITE ? '=' : '\0');
	if (op.kind == WRITE)
		op.value = number(&text, '\0');
	return op;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* The page that holds `offset`, mapped; the last one is kept, accesses cluster. */
static volatile void *at(int fd, const struct op *op)
{
	static char *page;
	static uint64_t mapped = ~0ull;
	uint64_t size = sysconf(_SC_PAGESIZE), base = op->offset & ~(size - 1);

	if (op->offset % op->width)
		usage("an access must be aligned to its width");
	if (base != mapped) {
		if (page)
			munmap(page, size);
		page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, base);
		if (page == MAP_FAILED)
			die("mmap");
		mapped = base;
	}
	return page + (op->offset - base);
}

static void perform(int fd, const struct op *op)
{
	volatile void *where = at(fd, op);
	double give_up;

	switch (op->kind) {
	case WRITE:
		if (op->width == 8)
			*(volatile uint64_t *)where = op->value;
		else
			*(volatile uint32_t *)where = op->value;
		break;
	case READ:
		printf("0x%llx\n", op->width == 8 ?
		       (unsigned long long)*(volatile uint64_t *)where :
		       (unsigned long long)*(volatile uint32_t *)where);
		break;
	case UNTIL:
		give_up = now() + 5;
		while ((*(volatile uint32_t *)where & op->mask) != op->value) {
			if (now() > give_up) {
				errno = ETIMEDOUT;
				die("until32");
			}
			usleep(1000);
		}
		break;
	case PAUSE:
		usleep(op->value * 1000);
		break;
	case REPEAT:
		break;
	}
}

static int mmio(const char *file, char **texts)
{
	/* Without O_SYNC: memory behind /dev/mem is then mapped as the kernel maps it. */
	int fd = open(file, O_RDWR), count = 0;
	struct op ops[64];

	if (fd < 0)
		die(file);
	for (; texts[count]; count++) {
		if (count == 64)
			usage("at most 64 OPs");
		ops[count] = parse(texts[count]);
	}
	for (int i = 0; i < count; i++) {
		if (ops[i].kind != REPEAT) {
			perform(fd, &ops[i]);
			continue;
		}
		for (uint64_t round = 1; round < ops[i].value; round++)
			for (int j = 0; j < i; j++)
				if (ops[j].kind != REPEAT)
					perform(fd, &ops[j]);
	}
	return 0;
}

/* -- kexec ----------------------------------------------------------------------------------- */

static _Noreturn void kexec(const char *image, const char *initrd, const char *cmdline)
{
	int kernel = open(image, O_RDONLY), ramdisk = open(initrd, O_RDONLY);

	if (kernel < 0)
		die(image);
	if (ramdisk < 0)
		die(initrd);
	if (syscall(SYS_kexec_file_load, kernel, ramdisk, strlen(cmdline) + 1, cmdline, 0))
		die("kexec_file_load");
	sync();
	syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
	die("reboot into the loaded kernel");
}

/* -- pin ------------------------------------------------------------------------------------- */

static _Noreturn void pin(void)
{
	size_t size = sysconf(_SC_PAGESIZE);
	char *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry;

	if (page == MAP_FAILED || mlock(page, size))
		die("mlock");
	memset(page, 0, size);
	/* Documentation/admin-guide/mm/pagemap.rst: frame number in bits 0-54, present in 63. */
	if (pagemap < 0 ||
	    pread(pagemap, &entry, 8, (uintptr_t)page / size * 8) != 8 || !(entry >> 63))
		die("pagemap");
	printf("0x%llx\n", (unsigned long long)(entry & ((1ull << 55) - 1)) * size);
	fflush(stdout);
	for (;;)
		pause();
}

/* -- fifo ------------------------------------------------------------------------------------ */

static _Noreturn void fifo(const char *priority, char **command)
{
	struct sched_param wanted = { .sched_priority = atoi(priority) };

	if (sched_setscheduler(0, SCHED_FIFO, &wanted))
		die("sched_setscheduler");
	execvp(command[0], command);
	die(command[0]);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "run"))
		return run(argv[2], argv[3]);
	if (argc >= 4 && !strcmp(argv[1], "mmio"))
		return mmio(argv[2], argv + 3);
	if (argc == 5 && !strcmp(argv[1], "kexec"))
		kexec(argv[2], argv[3], argv[4]);
	if (argc >= 4 && !strcmp(argv[1], "fifo"))
		fifo(argv[2], argv + 3);
	if (argc == 2 && !strcmp(argv[1], "pin"))
		pin();
	usage("hil run NONCE COMMAND | mmio FILE OP... | kexec IMAGE INITRD CMDLINE | fifo PRIORITY COMMAND... | pin");
}
