package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// systemd is what listens for the news of a service.
type systemd struct{ conn *net.UnixConn }

func listenAsSystemd(t *testing.T, name string) systemd {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return systemd{conn}
}

// hears waits for the next message.
func (s systemd) hears(t *testing.T) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := s.conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// TestNotify plays systemd for a VM that is a service.
func TestNotify(t *testing.T) {
	for kind, name := range map[string]string{
		"path":     filepath.Join(t.TempDir(), "notify"),
		"abstract": fmt.Sprintf("@vmrun-test-%d", os.Getpid()),
	} {
		t.Run(kind, func(t *testing.T) {
			s := listenAsSystemd(t, name)
			profile, env := fakeProfile(t, "serve")
			vmrun(t, append(env, "NOTIFY_SOCKET="+name), "run", "-d", "--notify", "--wait", "log=guest", profile)
			t.Cleanup(func() { vmrun(t, env, "kill", "--all") })
			var all []struct{ Supervisor int }
			if err := json.Unmarshal([]byte(vmrun(t, env, "ps", "--json")), &all); err != nil || len(all) != 1 {
				t.Fatalf("listed are %+v: %v", all, err)
			}
			if got, want := s.hears(t), fmt.Sprintf("MAINPID=%d\nREADY=1", all[0].Supervisor); got != want {
				t.Errorf("at the start systemd hears %q, want %q", got, want)
			}
			vmrun(t, env, "stop", "vm")
			if got := s.hears(t); got != "STOPPING=1" {
				t.Errorf("at the end systemd hears %q", got)
			}
		})
	}
}

// TestNotifyForeground plays systemd for a VM whose run is the service.
func TestNotifyForeground(t *testing.T) {
	for _, wait := range []string{"started", "log=guest"} {
		name := filepath.Join(t.TempDir(), "notify")
		s := listenAsSystemd(t, name)
		profile, env := fakeProfile(t, "serve")
		cmd := exec.Command("vmrun", "run", "--notify", "--wait", wait, profile)
		cmd.Env = append(env, "NOTIFY_SOCKET="+name)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if got := s.hears(t); got != "READY=1" {
			t.Errorf("--wait %s: at the start systemd hears %q", wait, got)
		}
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if got := s.hears(t); got != "STOPPING=1" {
			t.Errorf("--wait %s: at the end systemd hears %q", wait, got)
		}
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != exitSignal+int(unix.SIGTERM) {
			t.Errorf("--wait %s: exit code %d", wait, code)
		}
	}
}

// TestNotifyForegroundFails holds that a VM that is not ready in time, or can't say
// so, is ended, and that one which ends before is no service either.
func TestNotifyForegroundFails(t *testing.T) {
	for _, tt := range []struct {
		acts, wait, timeout, socket string
		code                        int
		says                        string
	}{
		{"serve", "log=never", "100ms", "notify", exitTimeout, "wait for log=never: "},
		{"serve", "started", "1m", "not-there", exitFailed, "notify systemd"},
		{"crash", "log=never", "1m", "notify", exitQEMU, "QEMU"},
	} {
		dir := t.TempDir()
		s := listenAsSystemd(t, filepath.Join(dir, "notify"))
		profile, env := fakeProfile(t, tt.acts)
		cmd := exec.Command("vmrun", "run", "--notify", "--wait", tt.wait, "--wait-timeout", tt.timeout, profile)
		cmd.Env = append(env, "NOTIFY_SOCKET="+filepath.Join(dir, tt.socket))
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(string(out), tt.says) {
			t.Errorf("%+v: exit code %d:\n%s", tt, code, out)
		}
		if tt.socket == "notify" {
			if got := s.hears(t); got != "STOPPING=1" {
				t.Errorf("%+v: systemd hears %q", tt, got)
			}
		}
	}
}

// TestNotifyUnmet holds that a VM which is not ready in time is no service, of
// which systemd hears that it has ended alone.
func TestNotifyUnmet(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	s := listenAsSystemd(t, name)
	profile, env := fakeProfile(t, "serve")
	cmd := exec.Command("vmrun", "run", "-d", "--notify", "--wait", "log=never", "--wait-timeout", "10ms", profile)
	cmd.Env = append(env, "NOTIFY_SOCKET="+name)
	out, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != exitTimeout {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if got := s.hears(t); got != "STOPPING=1" {
		t.Errorf("systemd hears %q", got)
	}
}

// TestNotifyNobody holds that a service that can't be told is refused before
// anything starts, or ended.
func TestNotifyNobody(t *testing.T) {
	for socket, want := range map[string]struct {
		code int
		says string
	}{
		"":                                      {exitUsage, "no NOTIFY_SOCKET"},
		"relative":                              {exitUsage, "want a path or an abstract socket"},
		filepath.Join(t.TempDir(), "not-there"): {exitFailed, "notify systemd"},
	} {
		profile, env := fakeProfile(t, "serve")
		cmd := exec.Command("vmrun", "run", "-d", "--notify", profile)
		cmd.Env = append(env, "NOTIFY_SOCKET="+socket)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != want.code || !strings.Contains(string(out), want.says) {
			t.Errorf("NOTIFY_SOCKET=%s: exit code %d:\n%s", socket, code, out)
		}
		if left := vmrun(t, env, "ps", "-aq"); left != "" {
			t.Errorf("NOTIFY_SOCKET=%s: left is %s", socket, left)
		}
	}
}
