package netsetup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// sitter is a process in namespaces of its own that does something and then
// waits for its end, or that of the namespaces that the test is in.
func sitter(t *testing.T, namespaces uintptr, script string) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command("sh", "-c", script+"; echo; exec cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, func() { in.Close(); cmd.Wait() }
}

// enter moves the thread into a network namespace, and back.
func enter(path string) (back func()) {
	home, there := must(netns.Get()), must(netns.GetFromPath(path))
	if err := errors.Join(netns.Set(there), there.Close()); err != nil {
		panic(err)
	}
	return func() {
		if err := errors.Join(netns.Set(home), home.Close()); err != nil {
			panic(err)
		}
	}
}

// placeAt is the place of this process, were it in a network namespace.
func placeAt(path string) place {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer enter(path)()
	return must(here())
}

// TestWay finds each way into a network namespace, and that it is gone without
// any.
func TestWay(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	for what, open := range map[string]func(t *testing.T, pid int) (way string, close func()){
		"none": func(*testing.T, int) (string, func()) { return "", func() {} },
		"mount": func(t *testing.T, pid int) (string, func()) {
			ip(t, "netns", "attach", "red", fmt.Sprint(pid))
			return "/run/netns/red", func() { ip(t, "netns", "del", "red") }
		},
		"file": func(t *testing.T, pid int) (string, func()) {
			f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()), func() { f.Close() }
		},
		"mount out of sight": func(t *testing.T, pid int) (string, func()) {
			other, end := sitter(t, unix.CLONE_NEWNS, fmt.Sprintf("touch /run/red && mount --bind /proc/%d/ns/net /run/red", pid))
			return fmt.Sprintf("/proc/%d/root/run/red", other), end
		},
		"thread": func(t *testing.T, pid int) (string, func()) {
			at, end := make(chan string), make(chan bool)
			go func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				back := enter(fmt.Sprintf("/proc/%d/ns/net", pid))
				way := fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
				if unix.Gettid() == os.Getpid() {
					way = fmt.Sprintf("/proc/%d/ns/net", os.Getpid())
				}
				at <- way
				<-end
				back()
				end <- true
			}()
			return <-at, func() { end <- true; <-end }
		},
	} {
		t.Run(what, func(t *testing.T) {
			pid, end := sitter(t, unix.CLONE_NEWNET, "true")
			in := fmt.Sprintf("/proc/%d/ns/net", pid)
			p := placeAt(in)
			if way, gone := p.way(); way != in || gone {
				t.Errorf("way %q, gone %v; want %q", way, gone, in)
			}
			want, close := open(t, pid)
			end()
			if way, gone := p.way(); way != want || gone != (want == "") {
				t.Errorf("way %q, gone %v; want %q", way, gone, want)
			}
			close()
			if way, gone := p.way(); way != "" || !gone {
				t.Errorf("way %q, gone %v; want none", way, gone)
			}
		})
	}
}

// TestOutOfSight: where somebody could be whom this process does not see, no
// namespace is taken for gone.
func TestOutOfSight(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	now := must(here())
	pid, end := sitter(t, unix.CLONE_NEWNET, "true")
	p := place{Net: must(inodeOf(fmt.Sprintf("/proc/%d/ns/net", pid))), PID: now.PID}
	end()
	if _, gone := p.way(); !gone {
		t.Error("it is not gone")
	}
	if _, gone := (place{Net: p.Net, PID: initialPIDs}).way(); gone && now.PID != initialPIDs {
		t.Error("gone from the host, as seen from a container")
	}
	if _, gone := (place{Net: p.Net, PID: now.PID + 1}).way(); gone != (now.PID != initialPIDs) {
		t.Errorf("gone, as seen from another container: %v", gone)
	}
	_, end = sitter(t, 0, "true") // root's
	defer end()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const same = ^uintptr(0)
	become := func(uid uintptr) { // this thread alone
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uid, same); errno != 0 {
			panic(errno)
		}
	}
	become(1000)
	_, gone := p.way()
	become(0)
	if gone {
		t.Error("gone, as seen by who may not look at others")
	}
}

// TestRootlessSight: a rootless session takes what another one has left for gone,
// unless it sees a way there.
func TestRootlessSight(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	now := must(here())
	gone := place{Net: now.Net + 1<<20, PID: initialPIDs}
	for p, want := range map[place]string{gone: `"" true`, now: `"/proc/1/ns/net" false`} {
		cmd := exec.Command("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--mount-proc",
			os.Args[0], "way", fmt.Sprint(p.Net), fmt.Sprint(p.PID))
		if p == now {
			cmd.Args = slices.DeleteFunc(cmd.Args, func(arg string) bool { return arg == "--net" })
		}
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("%+v: %s, %v; want %s", p, out, err, want)
		}
	}
}
