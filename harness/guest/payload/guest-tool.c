/*
 * hil: the guest's end of the harness. One static program, eight verbs.
 *
 *   hil run NONCE COMMAND     run COMMAND as /bin/sh does; print its output and status as one frame
 *   hil send FILE TAG COMMAND run COMMAND likewise; write its output to FILE, which a virtio port is
 *   hil mmio FILE OP...       reads and writes of a mapped file (a BAR's resourceN, /dev/mem)
 *   hil vfio BDF BYTES OP...  reads and writes of a device that vfio-pci drives, and of memory
 *   hil kexec IMAGE INITRD CMDLINE   load a kernel and jump into it
 *   hil fifo PRIORITY COMMAND...     run COMMAND under SCHED_FIFO
 *   hil acpi SIGNATURE        print the physical address of an ACPI table
 *   hil pin                   print the physical address of a zeroed page; keep it until killed
 *
 * A frame is  ~HIL:NONCE:<base64 of output and error>:STATUS:CRC32~  on lines of its own. Neither
 * '[' nor a space is in it, so the harness can take out kernel messages printed in its middle.
 *
 * send writes a line  ~HIL:TAG~  and then the output as it is, prints LENGTH:CRC32 of it, and ends
 * with COMMAND's status. When a write takes longer than WRITE_SECONDS, it fails and prints no LENGTH.
 *
 * OPs are performed in order:
 *   w32:OFFSET=VALUE, w64:…   write 32 or 64 bits
 *   r32:OFFSET, r64:…         read, and print one hexadecimal number on a line of its own
 *   until32:OFFSET&MASK=VALUE[@SECONDS]    poll; fail after five seconds, or SECONDS (a decimal)
 *   try32:…                   as until32, but go on when the time is over
 *   series:OFFSET,STRIDE,COUNT=VALUE,STEP  write 64 bits COUNT times: the i-th time (from 0)
 *                             VALUE+i*STEP at OFFSET+i*STRIDE; series32:… writes 32 bits
 *   add:OFFSET,STRIDE,COUNT=STEP   add STEP to 64 bits COUNT times, at OFFSET+i*STRIDE
 *   pause:MS                  wait
 *   repeat:N                  do all OPs before it, or since the last start, N times in all
 *   start                     where the next repeat begins
 *   in:FILE                   the OPs after it are on this file
 * All other numbers are as strtoull takes them.
 *
 * vfio opens the device, binds it to an iommufd with an empty address space of its own, enables its
 * memory space and bus mastering, disables INTx, and allocates BYTES of zeroed, locked memory. OPs
 * are on BAR 0, which is also in:bar0, or after in:memory on that memory. Two more are:
 *   map:IOVA=OFFSET+LENGTH[,ro]    map this part of the memory for the device (ro: to be read only)
 *   unmap:IOVA+LENGTH
 * At the end, or when it is killed, the device is closed, which resets it. When the kernel asks for
 * the device, because it is unplugged, the program ends at once, with status 3.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <linux/pci_regs.h>
#include <linux/reboot.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The OP that is parsed or performed: messages name it. */
static const char *current_op;

static void begin_message(void)
{
	fprintf(stderr, "hil: ");
	if (current_op)
		fprintf(stderr, "%s: ", current_op);
}

static _Noreturn void die(const char *what)
{
	int number = errno;

	begin_message();
	fprintf(stderr, "%s: %s\n", what, strerror(number));
	exit(1);
}

static _Noreturn void usage(const char *what)
{
	begin_message();
	fprintf(stderr, "%s\n", what);
	exit(2);
}

/* -- run ------------------------------------------------------------------------------------- */

static uint32_t crc32(uint32_t crc, const unsigned char *data, size_t length)
{
	static uint32_t table[256];

	/* By the byte: bit by bit takes longer than what is sent takes on its way. */
	if (!table[1])
		for (uint32_t byte = 0; byte < 256; byte++) {
			table[byte] = byte;
			for (int bit = 0; bit < 8; bit++)
				table[byte] = table[byte] >> 1 ^ (0xedb88320u & -(table[byte] & 1));
		}
	crc = ~crc;
	while (length--)
		crc = crc >> 8 ^ table[(crc ^ *data++) & 0xff];
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

/* The most words of a command that is run without a shell. */
enum { MOST_WORDS = 256 };

static int perform_verb(int argc, char **argv);

/*
 * Part a command into words, at its spaces and single quotes. Return their number, or 0 if it has
 * anything else that means something to a shell.
 */
static int words_of(char *text, char **words)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
				    "/._:=,+-@%";
	bool inside = false, quoted = false;
	char *to = text;
	int count = 0;

	for (; *text; text++) {
		if (!quoted && *text == ' ') {
			if (inside)
				*to++ = '\0';
			inside = false;
			continue;
		}
		if (!inside) {
			if (count == MOST_WORDS)
				return 0;
			words[count++] = to;
			inside = true;
		}
		if (*text == '\'')
			quoted = !quoted;
		else if (quoted || strchr(plain, *text))
			*to++ = *text;
		else
			return 0;
	}
	*to = '\0';
	words[count] = NULL;
	/* The shell takes NAME=VALUE in the first place for an assignment. */
	return quoted || !count || strchr(words[0], '=') ? 0 : count;
}

/*
 * Become what a command names, if that takes no shell: in a guest of an emulated host a program
 * takes milliseconds to start. What is not found may be one of the shell's own commands.
 */
static void become(const char *command)
{
	char *words[MOST_WORDS + 1], *text = strdup(command);
	int count = text ? words_of(text, words) : 0;

	if (!count)
		return;
	if (!strcmp(words[0], "hil"))
		exit(perform_verb(count, words));
	execvp(words[0], words);
}

/* Start a command without input; return where its output and errors can be read. */
static int start(const char *command, pid_t *pid)
{
	int ends[2];

	if (pipe(ends))
		die("pipe");
	*pid = fork();
	if (*pid < 0)
		die("fork");
	if (*pid == 0) {
		int null = open("/dev/null", O_RDONLY);

		dup2(null, 0);
		dup2(ends[1], 1);
		dup2(ends[1], 2);
		close(ends[0]);
		close(ends[1]);
		become(command);
		execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	close(ends[1]);
	return ends[0];
}

/* Wait for the end of a command; return its status as a shell does. */
static int status_of(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int run(const char *nonce, const char *command)
{
	unsigned char buffer[CHUNK];
	uint32_t crc = 0;
	size_t got;
	pid_t pid;
	int output = start(command, &pid);

	printf("\n~HIL:%s:\n", nonce);
	while ((got = read_full(output, buffer, CHUNK)) > 0) {
		crc = crc32(crc, buffer, got);
		put_base64(buffer, got);
	}
	printf(":%d:%08x~\n", status_of(pid), crc);
	return 0;
}

/* -- send ------------------------------------------------------------------------------------ */

/* The kernel hands so many bytes of one write to a virtio port at once. */
enum { SENT_AT_ONCE = 32 * 1024 };
/* So long one write may take. When it takes longer, nobody reads the port. */
enum { WRITE_SECONDS = 10 };

static volatile sig_atomic_t expired;

static void expire(int signal)
{
	(void)signal;
	expired = 1;
}

static void write_all(int fd, const char *name, const void *data, size_t length)
{
	alarm(WRITE_SECONDS);
	for (size_t done = 0; done < length;) {
		ssize_t n = write(fd, (const char *)data + done, length - done);

		/* A write that was interrupted may have taken a part. */
		if (expired)
			errno = ETIMEDOUT;
		if (n < 0 || expired)
			die(name);
		done += n;
	}
	alarm(0);
}

static int send_output(const char *file, const char *tag, const char *command)
{
	static unsigned char buffer[SENT_AT_ONCE];
	/* Without SA_RESTART, so that the write ends. */
	struct sigaction action = { .sa_handler = expire };
	int to = open(file, O_WRONLY | O_NOCTTY | O_CLOEXEC), output;
	uint64_t length = 0;
	uint32_t crc = 0;
	char head[64];
	size_t got;
	pid_t pid;

	if (to < 0)
		die(file);
	if (snprintf(head, sizeof(head), "~HIL:%s~\n", tag) >= (int)sizeof(head))
		usage("the tag is too long");
	sigaction(SIGALRM, &action, NULL);
	write_all(to, file, head, strlen(head));
	output = start(command, &pid);
	while ((got = read_full(output, buffer, sizeof(buffer))) > 0) {
		write_all(to, file, buffer, got);
		crc = crc32(crc, buffer, got);
		length += got;
	}
	printf("%" PRIu64 ":%08x\n", length, crc);
	return status_of(pid);
}

/* -- iommufd and VFIO as Linux has them ----------------------------------------------------- */

/*
 * Of Linux's include/uapi/linux/vfio.h and iommufd.h, as of 6.6. They are repeated here because the
 * headers of the distributions that this is compiled on may be older.
 */
#define VFIO_DEVICE_GET_REGION_INFO   _IO(';', 108)
#define VFIO_DEVICE_BIND_IOMMUFD      _IO(';', 118)
#define VFIO_DEVICE_ATTACH_IOMMUFD_PT _IO(';', 119)
#define VFIO_DEVICE_SET_IRQS          _IO(';', 110)
#define IOMMU_IOAS_ALLOC              _IO(';', 0x81)
#define IOMMU_IOAS_MAP                _IO(';', 0x85)
#define IOMMU_IOAS_UNMAP              _IO(';', 0x86)

enum { VFIO_PCI_BAR0_REGION_INDEX = 0, VFIO_PCI_CONFIG_REGION_INDEX = 7 };
enum { VFIO_REGION_INFO_FLAG_MMAP = 1 << 2 };
enum { VFIO_PCI_REQ_IRQ_INDEX = 4 };
enum { VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2, VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5 };
enum {
	IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0,
	IOMMU_IOAS_MAP_WRITEABLE = 1 << 1,
	IOMMU_IOAS_MAP_READABLE = 1 << 2,
};

struct vfio_region_info {
	uint32_t argsz, flags, index, cap_offset;
	uint64_t size, offset;
};

struct vfio_irq_set {
	uint32_t argsz, flags, index, start, count;
	int32_t eventfd; /* the data, for a count of 1 */
};

struct vfio_device_bind_iommufd {
	uint32_t argsz, flags;
	int32_t iommufd;
	uint32_t out_devid;
};

struct vfio_device_attach_iommufd_pt {
	uint32_t argsz, flags, pt_id;
};

struct iommu_ioas_alloc {
	uint32_t size, flags, out_ioas_id;
};

struct iommu_ioas_map {
	uint32_t size, flags, ioas_id, reserved;
	uint64_t user_va, length, iova;
};

struct iommu_ioas_unmap {
	uint32_t size, ioas_id;
	uint64_t iova, length;
};

#define CALL(fd, request, argument)               \
	do {                                      \
		if (ioctl(fd, request, argument)) \
			die(#request);            \
	} while (0)

/* The address space of the device. */
static int iommufd;
static uint32_t ioas;

static void map(uint64_t iova, void *from, uint64_t length, bool read_only)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 (read_only ? 0 : IOMMU_IOAS_MAP_WRITEABLE),
		.ioas_id = ioas,
		.user_va = (uintptr_t)from,
		.length = length,
		.iova = iova,
	};

	CALL(iommufd, IOMMU_IOAS_MAP, &map);
}

static void unmap(uint64_t iova, uint64_t length)
{
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap), .ioas_id = ioas, .iova = iova, .length = length
	};

	CALL(iommufd, IOMMU_IOAS_UNMAP, &unmap);
}

/* -- OPs ------------------------------------------------------------------------------------- */

/* What OPs read and write: a file, a region of a VFIO device's file, or memory of our own. */
struct place {
	const char *name;
	int fd;            /* -1: memory of our own, which the window shows whole */
	bool mappable;     /* if not, it is accessed with pread and pwrite */
	uint64_t start;    /* of the region, in the file */
	char *window;      /* what is mapped: `length` bytes of the place from `from` on */
	uint64_t from, length;
	struct place *next;
};

static struct place *places, *memory;

struct op {
	enum { WRITE, READ, UNTIL, SERIES, ADD, MAP, UNMAP, PAUSE, REPEAT, START, IN } kind;
	const char *text;
	struct place *in;
	unsigned int width;
	uint64_t offset, value, mask, stride, count, step, iova, length;
	double seconds;
	bool read_only, may_expire;
};

static struct place *add_place(const char *name, int fd)
{
	struct place *place = calloc(1, sizeof(*place));

	if (!place)
		die("calloc");
	*place = (struct place){ .name = name, .fd = fd, .mappable = true, .next = places };
	return places = place;
}

static struct place *place_named(const char *name)
{
	int fd;

	for (struct place *place = places; place; place = place->next)
		if (!strcmp(place->name, name))
			return place;
	/* Without O_SYNC: memory behind /dev/mem is then mapped as the kernel maps it. */
	fd = open(name, O_RDWR);
	if (fd < 0)
		die(name);
	return add_place(name, fd);
}

static bool starts(const char **text, const char *word)
{
	size_t length = strlen(word);

	if (strncmp(*text, word, length))
		return false;
	*text += length;
	return true;
}

static uint64_t number(const char **text, char end)
{
	char *stop;
	uint64_t value = strtoull(*text, &stop, 0);

	if (stop == *text || *stop != end)
		usage("a number is malformed");
	*text = stop + (end != '\0');
	return value;
}

static double seconds(const char *text)
{
	char *stop;
	double value = strtod(text, &stop);

	if (stop == text || *stop)
		usage("a number is malformed");
	return value;
}

static struct op parse(const char *text, struct place **in)
{
	struct op op = { .text = text, .width = 4, .seconds = 5 };
	const char *more;

	current_op = text;
	if (starts(&text, "in:")) {
		op.kind = IN;
		*in = place_named(text);
	} else if (starts(&text, "repeat:")) {
		op.kind = REPEAT;
		op.count = number(&text, '\0');
	} else if (starts(&text, "pause:")) {
		op.kind = PAUSE;
		op.value = number(&text, '\0');
	} else if (!strcmp(text, "start")) {
		op.kind = START;
	} else if ((op.may_expire = starts(&text, "try32:")) || starts(&text, "until32:")) {
		op.kind = UNTIL;
		op.offset = number(&text, '&');
		op.mask = number(&text, '=');
		more = strchr(text, '@');
		op.value = number(&text, more ? '@' : '\0');
		if (more)
			op.seconds = seconds(text);
	} else if (starts(&text, "series:") || !strncmp(text, "series32:", 9)) {
		op.kind = SERIES;
		op.width = starts(&text, "series32:") ? 4 : 8;
		op.offset = number(&text, ',');
		op.stride = number(&text, ',');
		op.count = number(&text, '=');
		op.value = number(&text, ',');
		op.step = number(&text, '\0');
	} else if (starts(&text, "add:")) {
		op.kind = ADD;
		op.width = 8;
		op.offset = number(&text, ',');
		op.stride = number(&text, ',');
		op.count = number(&text, '=');
		op.step = number(&text, '\0');
	} else if (memory && starts(&text, "map:")) {
		op.kind = MAP;
		op.iova = number(&text, '=');
		op.offset = number(&text, '+');
		more = strchr(text, ',');
		op.length = number(&text, more ? ',' : '\0');
		op.read_only = more;
		if (more && strcmp(text, "ro"))
			usage("only ro may follow the comma");
		if (op.length > memory->length || op.offset > memory->length - op.length)
			usage("only the tool's own memory can be mapped");
	} else if (memory && starts(&text, "unmap:")) {
		op.kind = UNMAP;
		op.iova = number(&text, '+');
		op.length = number(&text, '\0');
	} else if ((*text == 'r' || *text == 'w') &&
		   (!strncmp(text + 1, "32:", 3) || !strncmp(text + 1, "64:", 3))) {
		op.kind = *text == 'w' ? WRITE : READ;
		op.width = text[1] == '6' ? 8 : 4;
		text += 4;
		op.offset = number(&text, op.kind == WRITE ? '=' : '\0');
		if (op.kind == WRITE)
			op.value = number(&text, '\0');
	} else {
		usage("an OP is w32:O=V, w64:O=V, r32:O, r64:O, until32:O&M=V[@SECONDS], try32:..., "
		      "series:O,STRIDE,COUNT=V,STEP, series32:..., add:O,STRIDE,COUNT=STEP, pause:MS, repeat:N, start, in:FILE; "
		      "of vfio also "
		      "map:IOVA=O+LENGTH[,ro] or unmap:IOVA+LENGTH");
	}
	if (op.kind <= ADD && (op.offset % op.width || op.stride % op.width))
		usage("an access must be aligned to its width");
	op.in = *in;
	return op;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* Where `offset` is mapped. The last page is kept: accesses cluster. */
static volatile void *at(struct place *place, uint64_t offset)
{
	uint64_t size = sysconf(_SC_PAGESIZE);

	if (offset - place->from >= place->length) {
		if (place->fd < 0)
			usage("an access beyond the memory");
		if (place->length)
			munmap(place->window, place->length);
		place->from = offset & ~(size - 1);
		place->length = size;
		place->window = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, place->fd,
				     place->start + place->from);
		if (place->window == MAP_FAILED)
			die("mmap");
	}
	return place->window + (offset - place->from);
}

/* Keep the order of accesses for a device too: a command is in memory before its doorbell rings. */
static void barrier(void)
{
#ifdef __aarch64__
	__asm__ volatile("dmb osh" : : : "memory");
#else
	__sync_synchronize();
#endif
}

static uint64_t load(const struct op *op, uint64_t offset)
{
	volatile void *where;
	uint64_t value = 0;

	barrier();
	if (!op->in->mappable) {
		errno = EIO; /* of a short read, which sets none */
		if (pread(op->in->fd, &value, op->width, op->in->start + offset) != op->width)
			die("pread");
		return value;
	}
	where = at(op->in, offset);
	return op->width == 8 ? *(volatile uint64_t *)where : *(volatile uint32_t *)where;
}

static void store(const struct op *op, uint64_t offset, uint64_t value)
{
	volatile void *where;

	barrier();
	if (!op->in->mappable) {
		errno = EIO; /* of a short write, which sets none */
		if (pwrite(op->in->fd, &value, op->width, op->in->start + offset) != op->width)
			die("pwrite");
		return;
	}
	where = at(op->in, offset);
	if (op->width == 8)
		*(volatile uint64_t *)where = value;
	else
		*(volatile uint32_t *)where = value;
}

static void until(const struct op *op)
{
	double began = now();
	uint64_t last;

	while (((last = load(op, op->offset)) & op->mask) != op->value) {
		if (now() - began > op->seconds) {
			if (op->may_expire)
				return;
			begin_message();
			fprintf(stderr, "waited %g s for 0x%" PRIx64 " in the bits 0x%" PRIx64
				" at 0x%" PRIx64 " of %s; last there: 0x%" PRIx64 "\n", op->seconds,
				op->value, op->mask, op->offset, op->in->name, last);
			exit(1);
		}
		usleep(1000);
	}
}

static void perform(const struct op *op)
{
	current_op = op->text;
	switch (op->kind) {
	case WRITE:
		store(op, op->offset, op->value);
		break;
	case READ:
		printf("0x%" PRIx64 "\n", load(op, op->offset));
		break;
	case UNTIL:
		until(op);
		break;
	case SERIES:
		for (uint64_t i = 0; i < op->count; i++)
			store(op, op->offset + i * op->stride, op->value + i * op->step);
		break;
	case ADD:
		for (uint64_t i = 0; i < op->count; i++) {
			uint64_t offset = op->offset + i * op->stride;

			store(op, offset, load(op, offset) + op->step);
		}
		break;
	case MAP:
		map(op->iova, memory->window + op->offset, op->length, op->read_only);
		break;
	case UNMAP:
		unmap(op->iova, op->length);
		break;
	case PAUSE:
		usleep(op->value * 1000);
		break;
	case REPEAT:
	case START:
	case IN:
		break;
	}
}

/* Parse all OPs, of which the first are on `in`. */
static struct op *parse_all(struct place *in, char **texts, int count)
{
	struct op *ops = calloc(count, sizeof(*ops));

	if (!ops)
		die("calloc");
	for (int i = 0; i < count; i++)
		ops[i] = parse(texts[i], &in);
	current_op = NULL;
	return ops;
}

static void perform_all(const struct op *ops, int count)
{
	/* What was read is printed even if a later OP fails, or waits until it is killed. */
	setlinebuf(stdout);
	for (int i = 0, first = 0; i < count; i++) {
		perform(&ops[i]);
		if (ops[i].kind == START)
			first = i;
		if (ops[i].kind == REPEAT)
			for (uint64_t round = 1; round < ops[i].count; round++)
				for (int j = first; j < i; j++)
					perform(&ops[j]);
	}
}

static int mmio(const char *file, char **texts, int count)
{
	perform_all(parse_all(place_named(file), texts, count), count);
	return 0;
}

/* -- vfio ------------------------------------------------------------------------------------ */

/* Open the device that vfio-pci drives already: /dev/vfio/devices/vfioN. */
static int open_device(const char *bdf)
{
	char path[PATH_MAX];
	glob_t found;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev/vfio*", bdf);
	if (glob(path, 0, NULL, &found)) {
		errno = ENOENT;
		die(path);
	}
	snprintf(path, sizeof(path), "/dev/vfio/devices%s", strrchr(found.gl_pathv[0], '/'));
	fd = open(path, O_RDWR);
	if (fd < 0)
		die(path);
	return fd;
}

static struct vfio_region_info region(int device, uint32_t index)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };

	CALL(device, VFIO_DEVICE_GET_REGION_INFO, &info);
	return info;
}

static void set_command(int device, uint16_t bits)
{
	uint64_t where = region(device, VFIO_PCI_CONFIG_REGION_INDEX).offset + PCI_COMMAND;
	uint16_t command;

	if (pread(device, &command, 2, where) != 2)
		die("pread of PCI_COMMAND");
	command |= bits;
	if (pwrite(device, &command, 2, where) != 2)
		die("pwrite of PCI_COMMAND");
}

/* The kernel's request for the device: it waits until the device is closed. */
static int requested;

static void *end_when_requested(void *unused)
{
	uint64_t times;

	while (read(requested, &times, sizeof(times)) != sizeof(times))
		;
	_exit(3);
}

static void heed_requests(int device)
{
	struct vfio_irq_set set = {
		.argsz = sizeof(set),
		.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
		.index = VFIO_PCI_REQ_IRQ_INDEX,
		.count = 1,
	};
	pthread_t waiting;

	requested = set.eventfd = eventfd(0, 0);
	if (requested < 0)
		die("eventfd");
	CALL(device, VFIO_DEVICE_SET_IRQS, &set);
	errno = pthread_create(&waiting, NULL, end_when_requested, NULL);
	if (errno)
		die("pthread_create");
}

static int vfio(const char *bdf, const char *bytes, char **texts, int count)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct vfio_region_info info;
	struct place *bar;
	struct op *ops;

	memory = add_place("memory", -1);
	memory->length = number(&bytes, '\0');
	memory->window = mmap(NULL, memory->length, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory->window == MAP_FAILED)
		die("mmap");
	if (mlock(memory->window, memory->length))
		die("mlock");
	bar = add_place("bar0", -1);
	/* An OP that is malformed is found before the device is touched. */
	ops = parse_all(bar, texts, count);

	iommufd = open("/dev/iommu", O_RDWR);
	if (iommufd < 0)
		die("/dev/iommu");
	bar->fd = open_device(bdf);
	bind.iommufd = iommufd;
	CALL(bar->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind);
	CALL(iommufd, IOMMU_IOAS_ALLOC, &alloc);
	attach.pt_id = ioas = alloc.out_ioas_id;
	CALL(bar->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
	info = region(bar->fd, VFIO_PCI_BAR0_REGION_INDEX);
	bar->start = info.offset;
	bar->mappable = info.flags & VFIO_REGION_INFO_FLAG_MMAP;
	heed_requests(bar->fd);
	set_command(bar->fd, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);

	perform_all(ops, count);

	/* The device first: closing it resets it, so that it uses its address space no longer. */
	if (bar->length)
		munmap(bar->window, bar->length);
	close(bar->fd);
	close(iommufd);
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

/* -- acpi ------------------------------------------------------------------------------------ */

static void read_physical(int memory, uint64_t address, void *to, size_t size)
{
	errno = EIO; /* of a short read, which sets none */
	if (pread(memory, to, size, address) != (ssize_t)size)
		die("/dev/mem");
}

/* ACPI specification 6.5, 5.2.5 (RSDP) to 5.2.8 (XSDT). */
static int acpi(const char *signature)
{
	enum { XSDT_IN_RSDP = 24, LENGTH = 4, HEADER = 36 };
	FILE *systab = fopen("/sys/firmware/efi/systab", "r");
	uint64_t rsdp = 0, xsdt, table;
	char line[256], found[4];
	uint32_t length;
	int memory = open("/dev/mem", O_RDONLY);

	if (!systab)
		die("/sys/firmware/efi/systab");
	while (fgets(line, sizeof(line), systab) && sscanf(line, "ACPI20=%" SCNi64, &rsdp) != 1)
		;
	if (memory < 0)
		die("/dev/mem");
	read_physical(memory, rsdp + XSDT_IN_RSDP, &xsdt, sizeof(xsdt));
	read_physical(memory, xsdt + LENGTH, &length, sizeof(length));
	for (uint64_t at = HEADER; at + sizeof(table) <= length; at += sizeof(table)) {
		read_physical(memory, xsdt + at, &table, sizeof(table));
		read_physical(memory, table, found, sizeof(found));
		if (!memcmp(found, signature, sizeof(found))) {
			printf("0x%" PRIx64 "\n", table);
			return 0;
		}
	}
	errno = ENOENT;
	die(signature);
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

static int perform_verb(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "run"))
		return run(argv[2], argv[3]);
	if (argc == 5 && !strcmp(argv[1], "send"))
		return send_output(argv[2], argv[3], argv[4]);
	if (argc >= 4 && !strcmp(argv[1], "mmio"))
		return mmio(argv[2], argv + 3, argc - 3);
	if (argc >= 5 && !strcmp(argv[1], "vfio"))
		return vfio(argv[2], argv[3], argv + 4, argc - 4);
	if (argc == 5 && !strcmp(argv[1], "kexec"))
		kexec(argv[2], argv[3], argv[4]);
	if (argc >= 4 && !strcmp(argv[1], "fifo"))
		fifo(argv[2], argv + 3);
	if (argc == 3 && !strcmp(argv[1], "acpi") && strlen(argv[2]) == 4)
		return acpi(argv[2]);
	if (argc == 2 && !strcmp(argv[1], "pin"))
		pin();
	usage("hil run NONCE COMMAND | send FILE TAG COMMAND | mmio FILE OP... | vfio BDF BYTES OP... | "
	      "kexec IMAGE INITRD CMDLINE | fifo PRIORITY COMMAND... | "
	      "acpi SIGNATURE | pin");
}

int main(int argc, char **argv)
{
	return perform_verb(argc, argv);
}
