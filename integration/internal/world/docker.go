package world

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Docker is a Docker daemon, with the containerd that it starts.
type Docker struct {
	socket *os.File // that it is to listen at
	cmd    *exec.Cmd
	done   chan struct{}
}

const (
	dockerSocket = "/run/docker.sock"
	dockerLog    = "/run/docker.log"
)

// startDocker runs the daemon as Debian's unit does: the socket was there before.
const startDocker = `PATH=/run/docker.bin:/usr/sbin:/usr/bin:/sbin:/bin LISTEN_FDS=1 LISTEN_PID=$$ exec dockerd -H fd:// --storage-driver=vfs`

// InstallDocker puts the unpacked Docker into the sandbox's /usr. What no
// namespace holds is the machine's, and can only be read from then on: control
// groups, settings of the kernel, /dev. Nor are modules loaded. The sandbox's
// /etc/resolv.conf is a new one afterwards.
func InstallDocker(t *testing.T) {
	t.Helper()
	mount(t, "overlay", "/usr", "lowerdir="+unpacked("docker/usr")+":/usr")
	mount(t, "tmpfs", "/var/lib", "")
	overlayEtc(t, "")
	mount(t, "cgroup2", "/sys/fs/cgroup", "")
	for _, dir := range []string{"/sys/fs/cgroup", "/proc/sys/kernel", "/dev"} {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			t.Fatalf("bind %s: %v", dir, err)
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			t.Fatalf("make %s read only: %v", dir, err)
		}
	}
	modprobe := "/run/docker.bin/modprobe"
	if err := os.MkdirAll(filepath.Dir(modprobe), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(modprobe, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// overlayEtc gives the sandbox an /etc that it may write, with a folder's files
// besides the machine's, and an empty resolv.conf.
func overlayEtc(t *testing.T, folder string) {
	t.Helper()
	lower := "/etc"
	if folder != "" {
		lower = folder + ":/etc"
	}
	for _, dir := range []string{"/run/etc/upper", "/run/etc/work"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount(t, "overlay", "/etc", "lowerdir="+lower+",upperdir=/run/etc/upper,workdir=/run/etc/work")
	NameResolver(t, "")
}

// ServeDocker starts the daemon and waits until it serves.
func ServeDocker(t *testing.T) *Docker {
	t.Helper()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: dockerSocket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	d := new(Docker)
	if d.socket, err = listener.File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(dockerLog); t.Failed() && err == nil {
			t.Logf("dockerd said:\n%s", text)
		}
		d.cmd.Process.Kill() // it may have ended long ago
		<-d.done
		d.socket.Close()
	})
	d.Start(t)
	return d
}

// Start starts the daemon anew.
func (d *Docker) Start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(dockerLog, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command("sh", "-c", startDocker)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.ExtraFiles = []*os.File{d.socket}
	if err := d.cmd.Start(); err != nil {
		t.Fatalf("start dockerd: %v", err)
	}
	d.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		cmd.Wait() // it was asked to end, or its log says why
		close(done)
	}(d.cmd, d.done)
	if err := d.ping(t); err != nil {
		t.Fatalf("dockerd does not serve: %v", err)
	}
}

// ping asks the daemon whether it is there. The question waits in the socket's
// backlog until it is.
func (d *Docker) ping(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), daemonPatience)
	defer cancel()
	go func() {
		select {
		case <-d.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", dockerSocket)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	return answer.Body.Close()
}

// Stop ends the daemon as systemd would, and waits for it.
func (d *Docker) Stop(t *testing.T) {
	t.Helper()
	if err := d.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatalf("stop dockerd: %v", err)
	}
	<-d.done
}
