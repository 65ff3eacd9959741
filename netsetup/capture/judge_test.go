package capture

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// needs skips where a program is missing, and fails where VMRUN_TEST_MUST
// forbids that.
func needs(t *testing.T, feature string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	must := strings.Split(os.Getenv("VMRUN_TEST_MUST"), ",")
	if slices.Contains(must, feature) || slices.Contains(must, "all") {
		t.Fatalf("needs %s, as VMRUN_TEST_MUST demands: %v", feature, err)
	}
	t.Skipf("needs %s: %v", feature, err)
}

// record writes a file of all frames and returns their names in its order.
func record(t *testing.T, w *Writer, interfaces int) []string {
	t.Helper()
	var names []string
	for name := range frames {
		names = append(names, name)
	}
	slices.Sort(names)
	all := packets(t)
	for i, name := range names {
		p := all[name]
		p.Time = time.Unix(1700000000+int64(i), 123456789)
		p.Outbound = i%2 == 1
		if err := w.Packet(i%interfaces, p); err != nil {
			t.Fatal(err)
		}
	}
	return names
}

// apart are the frames that tcpdump sees otherwise: it looks behind no tag and no
// IPv6 extension unless it is told to, and takes no frame that is cut where an
// expression looks.
var apart = map[string]bool{"tagged": true, "mld": true, "short": true}

// TestTcpdump has tcpdump read what a Writer wrote, and choose by the same
// expressions as a Filter does.
func TestTcpdump(t *testing.T) {
	_, err := exec.LookPath("tcpdump")
	needs(t, "tcpdump", err)
	path := filepath.Join(t.TempDir(), "frames.pcapng")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w, err := NewWriter(file, "vmrun", []Interface{{Name: "vmt0", Description: "nic0", Snapshot: MaxSnapshot}})
	if err != nil {
		t.Fatal(err)
	}
	names := record(t, w, 1)
	all := packets(t)
	for _, expression := range []string{
		"", "arp", "ip", "ip6", "icmp", "icmp6", "tcp", "udp", "port 53", "tcp port 80", "udp port 53", "src port 22", "dst port 22",
		"portrange 60-80", "host 10.0.0.2", "ip host 10.0.0.2", "arp host 10.0.0.2", "src 192.0.2.1", "dst host 192.0.2.1",
		"net 10.0.1.0/24", "host 2001:db8::1 and udp", "ether src 52:54:00:00:00:02 and broadcast", "multicast and not broadcast",
		"less 30", "greater 54", "tcp and not port 22", "!tcp && !udp && !arp && !ip6", "(tcp or udp) and port 53",
		"arp or (port 67 or port 68)", "tcp or udp and port 53", "icmp or udp and port 67 or arp", "not (ip or ip6)", "igmp", "sctp port 80",
	} {
		f, err := ParseFilter(expression)
		if err != nil {
			t.Errorf("%s: %v", expression, err)
			continue
		}
		var want, got []string
		for i, name := range names {
			if !apart[name] && f.Wants(all[name]) {
				got = append(got, fmt.Sprintf("%d.123456789", 1700000000+i))
			}
		}
		out, err := exec.Command("tcpdump", "-nn", "-tt", "--time-stamp-precision=nano", "-r", path, expression).Output()
		if err != nil {
			t.Fatalf("tcpdump %s: %v", expression, err)
		}
		for line := range strings.Lines(string(out)) {
			stamp, _, _ := strings.Cut(line, " ")
			var i int
			if n, _ := fmt.Sscanf(stamp, "17%d.", &i); n == 1 && !apart[names[i]] {
				want = append(want, stamp)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, tcpdump has %v", expression, got, want)
		}
	}
}

// TestWriter has blocks of whole lengths, each in one write, for whoever reads
// along.
func TestWriter(t *testing.T) {
	var blocks blockWriter
	w, err := NewWriter(&blocks, "vmrun", []Interface{{Name: "vmt0"}, {Name: "vmt1", Filter: "arp"}})
	if err != nil {
		t.Fatal(err)
	}
	record(t, w, 2)
	if err := w.Statistics(1, Statistics{Received: 7, Dropped: 1}, time.Unix(1700000000, 0)); err != nil {
		t.Fatal(err)
	}
	if want := 3 + len(frames) + 1; len(blocks.blocks) != want {
		t.Errorf("%d blocks, want %d", len(blocks.blocks), want)
	}
	for i, b := range blocks.blocks {
		if len(b)%4 != 0 || !bytes.Equal(b[4:8], b[len(b)-4:]) || int(b[4])|int(b[5])<<8 != len(b) {
			t.Errorf("block %d: % x", i, b)
		}
	}
}

type blockWriter struct{ blocks [][]byte }

func (w *blockWriter) Write(b []byte) (int, error) {
	w.blocks = append(w.blocks, slices.Clone(b))
	return len(b), nil
}
