package images

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The bytes of an image by which QEMU processes exclude each other, with open
// file description locks (QEMU's block/file-posix.c): a read lock on 100+n says
// "I do n", one on 200+n says "nobody else may do n".
const (
	lockDoes    = 100
	lockForbids = 200

	permRead   = 0
	permWrite  = 1
	permResize = 3
)

// checkLocks finds out whether QEMU could take its locks on f, without taking
// any. It wraps ErrLocked if not.
func checkLocks(f *os.File, write bool) error {
	// An image that is only read may be read by others, but not written.
	conflicts := []int64{lockDoes + permWrite, lockForbids + permRead}
	if write {
		conflicts = append(conflicts, lockDoes+permResize, lockForbids+permWrite, lockForbids+permResize)
	}
	for _, offset := range conflicts {
		taken, err := lockedByOther(f, offset)
		if err != nil {
			return fmt.Errorf("look for locks: %w", err)
		}
		if taken {
			return ErrLocked
		}
	}
	return nil
}

// lockedByOther reports whether another open file holds any lock on one byte.
func lockedByOther(f *os.File, offset int64) (bool, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: offset, Len: 1}
	var lockErr error
	err = conn.Control(func(fd uintptr) {
		lockErr = unix.FcntlFlock(fd, unix.F_OFD_GETLK, &lock)
	})
	if err == nil {
		err = lockErr
	}
	return lock.Type != unix.F_UNLCK, err
}
