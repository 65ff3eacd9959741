// Lets User-Mode Linux 6.1 run on processors with AMX, by LD_PRELOAD.
//
// It sets a thread's extended state in the 2696 bytes that the largest processor
// of its time had (HOST_FP_SIZE). Linux takes the whole of it or nothing
// (xstateregs_set), and with AMX there is more. What is missing is added as the
// thread has it.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

typedef long ptrace_function(long request, long pid, void *addr, void *data);

static ptrace_function *next;
static char whole[64 << 10]; // the stacks of the kernel are small

__attribute__((constructor)) static void find(void) { next = (ptrace_function *)dlsym(RTLD_NEXT, "ptrace"); }

long ptrace(enum __ptrace_request request, ...)
{
	struct iovec *given, all = {whole, sizeof whole};
	va_list args;
	long pid, result;
	void *addr;

	va_start(args, request);
	pid = va_arg(args, int);
	addr = va_arg(args, void *);
	given = va_arg(args, void *);
	va_end(args);
	result = next(request, pid, addr, given);

	if (result != -1 || errno != EFAULT || request != PTRACE_SETREGSET || addr != (void *)NT_X86_XSTATE)
		return result;
	if (next(PTRACE_GETREGSET, pid, addr, &all) == -1)
		return -1;
	if (given->iov_len > all.iov_len) {
		errno = EFAULT;
		return -1;
	}
	memcpy(whole, given->iov_base, given->iov_len);
	return next(PTRACE_SETREGSET, pid, addr, &all);
}
