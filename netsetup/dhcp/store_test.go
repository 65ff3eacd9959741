package dhcp

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestKilled opens the file of a table that was never closed: whatever a client
// heard of is there.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	stranger := w.lease(client(1))
	port := w.reserve(client(2), "", "web")
	left := w.reserve(client(3), "10.70.0.33", "db")
	w.leases.Release(mac2(3))
	w.want(w.send(discover(client(4))), 2) // an offer is no lease
	w.open()

	var got []string
	for _, e := range w.leases.List() {
		got = append(got, strings.Join([]string{e.IP.String(), e.MAC, e.Hostname, string(e.State)}, " "))
	}
	want := []string{
		left.String() + " 52:54:00:00:00:03 db remembered",
		stranger.String() + " 52:54:00:00:00:01  bound",
		port.String() + " 52:54:00:00:00:02 web remembered",
	}
	if port.Less(stranger) {
		want[1], want[2] = want[2], want[1]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if again := w.reserve(client(2), "", "web"); again != port {
		t.Errorf("port got %s, had %s", again, port)
	}
}

func TestBadFiles(t *testing.T) {
	const line = `{"mac":"52:54:00:00:00:07","ip":"10.70.0.103","since":"2029-01-01T00:00:00Z","used":"2029-01-01T00:00:00Z"}`
	tests := []struct {
		name, file string
		leases     int
		log        string
		aside      bool
	}{
		{"empty", "", 0, "", false},
		{"header only", storeHeader, 0, "", false},
		{"whole", storeHeader + "\n" + line, 1, "", false},
		{"torn", storeHeader + "\n" + line + "\n" + line[:40], 1, "damaged line", false},
		{"torn in the middle", storeHeader + "\n" + line[:40] + "\n" + line, 1, "damaged line", false},
		{"zeros", storeHeader + "\n" + line + "\n" + strings.Repeat("\x00", 4096), 1, "damaged line", false},
		{"later version", `{"vmrun":"leases","version":2}` + "\n" + line, 0, "not of this version", true},
		{"foreign", "lease {\n  interface \"eth0\";\n}\n", 0, "not of this version", true},
		{"binary", string([]byte{0x7f, 'E', 'L', 'F', 0, 0, 1}), 0, "not of this version", true},
		{"other subnet", storeHeader + "\n" + strings.Replace(line, "10.70.0.103", "10.99.0.3", 1), 0, "", false},
		{"no MAC", storeHeader + "\n" + strings.Replace(line, "52:54:00:00:00:07", "00:00:00:00:00:00", 1), 0, "", false},
		{"one address twice", storeHeader + "\n" + strings.Replace(line, "00:07", "00:08", 1) + "\n" + line, 1, "", false},
		{"one MAC twice", storeHeader + "\n" + strings.Replace(line, "0.103", "0.104", 1) + "\n" + line, 1, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, func(o *Options, _ *Config) {
				if err := os.WriteFile(o.Path, []byte(tt.file), 0o600); err != nil {
					t.Fatal(err)
				}
			})
			list := w.leases.List()
			if len(list) != tt.leases || tt.leases > 0 && (list[0].IP != ip("10.70.0.103") || list[0].MAC != client(7).String()) {
				t.Errorf("leases: %+v", list)
			}
			if tt.log != "" {
				w.wantLog(tt.log, 1)
			} else if w.log.Len() > 0 {
				t.Errorf("log: %s", w.log)
			}
			if kept, err := os.ReadFile(w.opts.Path + ".unreadable"); tt.aside && string(kept) != tt.file || !tt.aside && err == nil {
				t.Errorf("put aside %q, %v", kept, err)
			}
			w.lease(client(1))
		})
	}
}

func TestRewrite(t *testing.T) {
	w := newWorld(t)
	addr := w.lease(client(1))
	for i := 0; w.leases.store.changes > 0 || i == 0; i++ {
		w.leases.bind(client(1), addr, "", time.Hour)
		if i > rewriteSize {
			t.Fatal("never rewritten")
		}
	}
	if fi, err := os.Stat(w.opts.Path); err != nil || fi.Size() > 1000 {
		t.Errorf("file has %d bytes, %v", fi.Size(), err)
	}
	w.leases.bind(client(1), addr, "late", time.Hour)
	w.open()
	if got := w.leases.List(); len(got) != 1 || got[0].Hostname != "late" {
		t.Errorf("leases: %+v", got)
	}
	files, err := filepath.Glob(filepath.Dir(w.opts.Path) + "/*")
	if err != nil || len(files) != 1 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

// TestTornLine has a line follow one that the disk had no room for.
func TestTornLine(t *testing.T) {
	w := newWorld(t)
	if _, err := w.leases.store.file.WriteString("\n" + `{"mac":"52:54`); err != nil {
		t.Fatal(err)
	}
	addr := w.lease(client(1))
	w.open()
	if got := w.leases.List(); len(got) != 1 || got[0].IP != addr {
		t.Errorf("leases: %+v", got)
	}
}

// TestFullDisk goes on serving when nothing can be saved.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	w := newWorld(t)
	old := w.leases.store.file
	w.leases.store.file = full
	for n := range byte(5) {
		w.lease(client(n + 1))
	}
	w.wantLog("leases are not saved", 1)
	if err := old.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenLeasesFails(t *testing.T) {
	for _, path := range []string{"/dev/null/leases", t.TempDir()} {
		if _, err := OpenLeases(Options{Pool: testPool(), Path: path}); err == nil {
			t.Errorf("opened %s", path)
		}
	}
}

// TestOpenInUse: machines that have addresses go on with them whatever has become
// of the file, and are known from it where it can still be read.
func TestOpenInUse(t *testing.T) {
	for name, spoil := range map[string]func(*testing.T, string) string{
		"no folder": func(_ *testing.T, _ string) string { return "/dev/null/leases" },
		"a folder":  func(t *testing.T, _ string) string { return t.TempDir() },
		"can't be replaced": func(t *testing.T, path string) string {
			if err := os.Mkdir(path+".new", 0o700); err != nil {
				t.Fatal(err)
			}
			return path
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			had := w.lease(client(1))
			written := w.opts.Path
			w.opts.Path = spoil(t, written)
			if _, err := OpenLeases(w.opts); err == nil {
				t.Error("opened for a network that begins")
			}
			w.opts.InUse = true
			w.open()
			w.wantLog("kept in memory alone", 1)
			if known := len(w.leases.List()) == 1; known != (w.opts.Path == written) {
				t.Errorf("leases: %+v", w.leases.List())
			}
			w.reserve(client(2), "10.70.0.20", "web")
			if got := w.lease(client(2)); got != ip("10.70.0.20") {
				t.Errorf("got %s, reserved 10.70.0.20", got)
			}
			if w.opts.Path == written {
				if got := w.lease(client(1)); got != had {
					t.Errorf("got %s, had %s", got, had)
				}
			}
		})
	}
}
