package netsetup

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// keptCaps is all that a keeper needs: links, addresses and rules; packet
// sockets; ports below 1024.
const keptCaps = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_NET_BIND_SERVICE

// startRestricted starts a command that has, for good and for all that it
// starts in turn, no capability beyond keptCaps: the bounding set limits what
// exec grants to uid 0, and no_new_privs what a set-user-ID file does
// (capabilities(7)). Both are a thread's own and inherited by its children, so
// the work is done on a thread that ends here.
func startRestricted(cmd *exec.Cmd) error { return startWith(cmd, keptCaps) }

// startWith is startRestricted with other capabilities.
func startWith(cmd *exec.Cmd, caps uint64) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := restrictThread(caps); err != nil {
			done <- err
			return
		}
		done <- cmd.Start()
	}()
	return <-done
}

func restrictThread(caps uint64) error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if caps&(1<<c) != 0 {
			continue
		}
		// EINVAL: this kernel is older than the capability. EPERM: we have no
		// CAP_SETPCAP, so the set is somebody else's affair.
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}
