package integration

import (
	"bytes"
	"encoding/json"
	"image/png"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/integration/internal/feature"
	"github.com/vmrun/vmrun/integration/internal/sandbox"
)

// The screen of a VM is in the report of a boot that failed, is saved, and is served
// to this host alone.
func TestDisplay(t *testing.T) {
	sandbox.Run(t, func(t *testing.T) {
		feature.Needs(t, bootFeatures...)
		h := newHost(t)
		before := h.state(t)
		dir := t.TempDir()
		profile := writeProfile(t, dir, "web", "display = \"vnc\"\n"+micro(t, serveScript))
		code, out := h.vmrun(t, "run", "-d", "--keep", "--wait", "log=never", "--wait-timeout", "5s", "--report", dir+"/report/", profile)
		if code != 124 {
			t.Fatalf("run ends with %d: %s", code, out)
		}
		isPicture(t, readFile(t, filepath.Join(dir, "report/screenshot.png")))

		file := filepath.Join(dir, "screen.png")
		h.does(t, "", "screenshot", "web", file)
		isPicture(t, readFile(t, file))
		isPicture(t, h.prints(t, "screenshot", "web", "-"))

		h.servesScreen(t, h.prints(t, "vnc", "web", "--json"))
		if code, out := h.vmrun(t, "vnc", "web", "--listen", "0.0.0.0:1"); code != 2 || !strings.Contains(out, "want an address of the loopback") {
			t.Errorf("vnc to the world ends with %d: %s", code, out)
		}
		h.does(t, "web: ", "kill", "web")
		h.restored(t, before)
	})
}

// prints runs a command that has to succeed and returns its stdout, byte by byte.
func (h *host) prints(t *testing.T, args ...string) (stdout []byte) {
	t.Helper()
	err := h.Do(func() (err error) {
		stdout, err = h.command(t, args...).Output()
		return err
	})
	if err != nil {
		t.Fatalf("vmrun %s: %v", strings.Join(args, " "), err)
	}
	return stdout
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// isPicture checks that it is the picture of a screen.
func isPicture(t *testing.T, content []byte) {
	t.Helper()
	picture, err := png.Decode(bytes.NewReader(content))
	if err != nil {
		t.Fatalf("%.20q: %v", content, err)
	}
	if size := picture.Bounds().Size(); size.X < 320 || size.Y < 200 {
		t.Errorf("the screen has %v", size)
	}
}

// servesScreen has the VM web's screen at a port for as long as vnc runs, of which
// the same is told as what it said as JSON.
func (h *host) servesScreen(t *testing.T, said []byte) {
	t.Helper()
	var d struct{ Kind, Socket, Password string }
	if err := json.Unmarshal(said, &d); err != nil || d.Kind != "vnc" || d.Password == "" {
		t.Fatalf("vnc --json says %s: %v", said, err)
	}
	if fi, err := os.Stat(d.Socket); err != nil || fi.Mode().Type() != os.ModeSocket {
		t.Errorf("the screen's socket: %v, %v", fi, err)
	}
	serving := h.start(t, h.command(t, "vnc", "web", "--listen", "127.0.0.1:0"))
	address := serving.expect(t, `vnc  (127\.0\.0\.1:\d+)\n`)[1]
	if password := serving.expect(t, `password  (\S+)\n`)[1]; password != d.Password {
		t.Errorf("the password is %s, and was %s", password, d.Password)
	}
	err := h.Do(func() error {
		conn, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		greeting := make([]byte, len("RFB 003.008\n"))
		if _, err := io.ReadFull(conn, greeting); err != nil || string(greeting) != "RFB 003.008\n" {
			t.Errorf("the screen greets by %q, %v", greeting, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := serving.cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	serving.ends(t, 0)
}
