package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/vmrun/vmrun/images/guest/tree"
)

// block is how much of a file is read or written by one command, in bytes.
const block = 256 << 10

// The agent reads and writes files but knows nothing of folders and modes. Tar
// in the guest does, with a file in the guest between it and us. Scripts get
// their values as arguments, never as text.
const (
	// workScript makes a folder for that file, and for a tree that is not whole.
	workScript = `set -e
dir=$1
case $dir in */) ;; *) [ -d "$dir" ] || dir=$(dirname -- "$dir") ;; esac
mktemp -d -- "${dir%/}/.vmrun-XXXXXXXX"`

	// putScript unpacks the file archive in the folder $1, and moves what comes
	// out to $2, or where that is a folder, into it as $3.
	putScript = `set -e
work=$1 target=$2 name=$3
mkdir "$work/new"
tar -xf "$work/archive" -C "$work/new"
rm "$work/archive"
new=$work/new/tree
case $target in */) target=$target$name ;; *) if [ -d "$target" ]; then target=$target/$name; fi ;; esac
if [ -d "$new" ]; then
	if [ -d "$target" ]; then
		cp -a "$new/." "$target/"
	elif [ -e "$target" ] || [ -L "$target" ]; then
		echo "$target: a file of that name is there" >&2; exit 1
	else
		mv "$new" "$target"
	fi
elif [ -d "$target" ]; then
	echo "$target: a folder of that name is there" >&2; exit 1
else
	mv -f "$new" "$target"
fi
rm -rf "$work"`

	// getScript packs $2 as the file archive in the folder $1, and prints its size.
	getScript = `set -e
work=$1
file=$(readlink -f -- "$2") && [ -e "$file" ] || { echo "$2: No such file or directory" >&2; exit 1; }
tar --format=posix -cf "$work/archive" -C "$(dirname -- "$file")" -- "./$(basename -- "$file")" 2>"$work/why" ||
	tar -cf "$work/archive" -C "$(dirname -- "$file")" -- "./$(basename -- "$file")"
wc -c <"$work/archive"`
)

// script runs a shell script in the guest and returns what it prints.
func (q *QGA) script(ctx context.Context, text string, args ...string) (string, error) {
	argv := append([]string{"/bin/sh", "-c", text, "vmrun"}, args...)
	var stdout, stderr strings.Builder
	status, err := q.Run(ctx, Command{Argv: argv, Stdout: &stdout, Stderr: &stderr})
	if err == nil && status.ExitCode() != 0 {
		err = fmt.Errorf("in the guest: %s", strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSuffix(stdout.String(), "\n"), err
}

// withWork runs f with a folder of the guest, below near, that is gone
// afterwards.
func (q *QGA) withWork(ctx context.Context, near string, f func(work string) error) error {
	work, err := q.script(ctx, workScript, near)
	if err != nil {
		return err
	}
	err = f(work)
	if err != nil {
		// Also when it was given up.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), q.patience)
		defer cancel()
		if _, gone := q.script(ctx, `rm -rf -- "$1"`, work); gone != nil {
			err = errors.Join(err, fmt.Errorf("remove %s from the guest: %w", work, gone))
		}
	}
	return err
}

// Put implements Agent.
func (q *QGA) Put(ctx context.Context, target, name string, files io.Reader) error {
	if name == "" || strings.Contains(name, "/") || name == "." || name == ".." {
		return fmt.Errorf("copy to %q: want the name of a file or folder", name)
	}
	return q.withWork(ctx, target, func(work string) error {
		file, err := q.openFile(ctx, path.Join(work, "archive"), "w")
		if err != nil {
			return err
		}
		buffered := bufio.NewWriterSize(file, block)
		err = tree.Copy(buffered, files)
		if err == nil {
			err = buffered.Flush()
		}
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
		_, err = q.script(ctx, putScript, work, target, name)
		return err
	})
}

// Get implements Agent.
func (q *QGA) Get(ctx context.Context, name string, size func(int64), files io.Writer) error {
	return q.withWork(ctx, "/tmp/", func(work string) error {
		told, err := q.script(ctx, getScript, work, name)
		if err != nil {
			return err
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(told), 10, 64); err == nil && size != nil {
			size(n)
		}
		file, err := q.openFile(ctx, path.Join(work, "archive"), "r")
		if err != nil {
			return err
		}
		_, err = io.Copy(files, file)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
		_, err = q.script(ctx, `rm -rf -- "$1"`, work)
		return err
	})
}

// guestFile is an open file of the guest. Close closes it.
type guestFile struct {
	qga    *QGA
	ctx    context.Context
	handle int64
}

func (q *QGA) openFile(ctx context.Context, name, mode string) (*guestFile, error) {
	f := &guestFile{qga: q, ctx: ctx}
	err := q.call(ctx, "guest-file-open", map[string]string{"path": name, "mode": mode}, &f.handle)
	return f, err
}

func (f *guestFile) Read(p []byte) (int, error) {
	var r struct {
		Data []byte `json:"buf-b64"`
		EOF  bool   `json:"eof"`
	}
	args := map[string]int64{"handle": f.handle, "count": int64(min(len(p), block))}
	if err := f.qga.call(f.ctx, "guest-file-read", args, &r); err != nil {
		return 0, err
	}
	n := copy(p, r.Data)
	switch {
	case n < len(r.Data):
		return n, errors.New("qemu-guest-agent: guest-file-read: more than was asked for")
	case n == 0:
		return 0, io.EOF // whatever it says
	}
	return n, nil
}

// WriteTo implements io.WriterTo, in pieces as large as the agent takes them.
func (f *guestFile) WriteTo(w io.Writer) (int64, error) {
	return io.CopyBuffer(w, struct{ io.Reader }{f}, make([]byte, block))
}

func (f *guestFile) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		var r struct{ Count int }
		part := p[:min(len(p), block)]
		err := f.qga.call(f.ctx, "guest-file-write", map[string]any{"handle": f.handle, "buf-b64": part}, &r)
		if err == nil && (r.Count <= 0 || r.Count > len(part)) {
			err = fmt.Errorf("qemu-guest-agent: guest-file-write: wrote %d of %d bytes", r.Count, len(part))
		}
		if err != nil {
			return written, err
		}
		written += r.Count
		p = p[r.Count:]
	}
	return written, nil
}

func (f *guestFile) Close() error {
	// Also when the context has ended: the agent's files are few.
	return f.qga.call(context.WithoutCancel(f.ctx), "guest-file-close", map[string]int64{"handle": f.handle}, nil)
}
