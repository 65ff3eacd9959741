package netsetup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup/firewall"
)

// blue is a network namespace with a way out, for networks of its own.
func blue(t *testing.T) {
	t.Helper()
	ip(t, "netns", "add", "blue")
	for _, args := range []string{
		"link set lo up", "link add eth1 type veth peer name fareth1", "link set eth1 up", "link set fareth1 up",
		"addr add 192.0.2.2/24 dev eth1", "route add default via 192.0.2.1",
	} {
		ip(t, append([]string{"-n", "blue"}, strings.Fields(args)...)...)
	}
}

// inBlue runs a command there.
func inBlue(t *testing.T, args ...string) string {
	t.Helper()
	return ip(t, append([]string{"netns", "exec", "blue"}, args...)...)
}

func blueState(t *testing.T) string {
	t.Helper()
	return inBlue(t, "sh", "-c", "ip -br link | awk '{print $1}'; ip -4 route | sed 's/ *linkdown//; s/ *$//'; nft -s list ruleset; cat /proc/sys/net/ipv4/conf/*/forwarding")
}

func blueMember(t *testing.T, h Host) *exec.Cmd {
	t.Helper()
	return startMemberBy(t, exec.Command("ip", "netns", "exec", "blue", os.Args[0], "member", filepath.Dir(h.Runtime), "nat", "nftables"))
}

// dieInBlue leaves what a network of blue's leaves whose member and keeper are
// killed.
func dieInBlue(t *testing.T, h Host) {
	t.Helper()
	m := blueMember(t, h)
	halt(t, m.Process.Pid) // it starts no other keeper
	kill(t, only(t))
	m.Process.Kill()
	m.Wait()
}

// isElsewhere checks a refusal, and that there was nothing else.
func isElsewhere(t *testing.T, what string, err error, want ElsewhereError) {
	t.Helper()
	far, ok := errors.AsType[*ElsewhereError](err)
	if !ok {
		t.Fatalf("%s: %v, want an *ElsewhereError", what, err)
	}
	if diff := cmp.Diff(want, *far); diff != "" {
		t.Errorf("%s:\n%s", what, diff)
	}
}

// TestElsewhere: what a network has left in another network namespace is undone
// there, and until then the network comes up nowhere else.
func TestElsewhere(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	blue(t)
	h, spec, ctx := testHost(t), specs()["nat"], context.Background()
	hostState(t)
	nothing, before := hostState(t), blueState(t)
	dieInBlue(t, h)
	left := blueState(t)
	if left == before {
		t.Fatal("nothing was left")
	}
	dir := filepath.Join(netsFolder(h.Runtime), spec.folder())
	want := ElsewhereError{Namespace: must(inodeOf("/run/netns/blue")), Way: "/run/netns/blue", Journal: filepath.Join(dir, "journal")}
	if lines, err := SweepAside(ctx, h); err != nil || lines != nil {
		t.Errorf("swept aside: %v, %v", lines, err)
	}
	_, err := Sweep(ctx, h)
	isElsewhere(t, "swept", err, want)
	_, err = Attach(ctx, h, spec, testPort())
	isElsewhere(t, "attached", err, want)
	isElsewhere(t, "held", StartHolder(ctx, h, spec, nil), want)
	isElsewhere(t, "down", Down(ctx, h, "lan", spec.Dir), want)
	awaitAlone(t)
	if diff := cmp.Diff(left, blueState(t)) + cmp.Diff(nothing, hostState(t)); diff != "" {
		t.Errorf("changed:\n%s\n%s", diff, keeperLogs(h))
	}
	if out := inBlue(t, os.Args[0], "sweep", filepath.Dir(h.Runtime)); !strings.Contains(out, "delete vmr") {
		t.Errorf("swept there: %q", out)
	}
	if diff := cmp.Diff(before, blueState(t)); diff != "" {
		t.Errorf("left behind there:\n%s", diff)
	}
	comesUp(t, h, spec)
}

// comesUp attaches to a network and leaves it, with nothing left behind.
func comesUp(t *testing.T, h Host, spec Spec) {
	t.Helper()
	before := hostState(t)
	use(t, h, spec)
	if diff := cmp.Diff(before, hostState(t)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestNamespaceGone: what was left in a namespace went with it, and hinders
// nobody, also where the network comes up without a sweep before.
func TestNamespaceGone(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, spec := testHost(t), specs()["nat"]
	hostState(t)
	for what, meet := range map[string]func(){
		"swept": func() {
			lines, err := Sweep(context.Background(), h)
			if want := "network lan." + spec.folder()[4:] + ": forgotten, the network namespace that it was in is gone"; err != nil || !slices.Equal(lines, []string{want}) {
				t.Errorf("swept %q, %v", lines, err)
			}
			if left, _ := filepath.Glob(filepath.Join(netsFolder(h.Runtime), spec.folder(), "*.json*")); left != nil {
				t.Errorf("left %q", left)
			}
		},
		"down": func() {
			if err := Down(context.Background(), h, "lan", spec.Dir); !errors.As(err, new(*NotFoundError)) {
				t.Errorf("down: %v", err)
			}
		},
		"held": func() {
			if err := StartHolder(context.Background(), h, spec, nil); err != nil {
				t.Fatal(err)
			}
			if err := Down(context.Background(), h, "lan", spec.Dir); err != nil {
				t.Error(err)
			}
		},
		"attached": func() {},
	} {
		t.Run(what, func(t *testing.T) {
			blue(t)
			claims := place{Net: must(inodeOf("/run/netns/blue"))}.hostFolder(h.Runtime)
			dieInBlue(t, h)
			claim := filepath.Join(claims, "forwarding-eth1")
			if fi, err := os.Stat(claim); err != nil || fi.Size() == 0 {
				t.Fatalf("no claim was left: %v, %v", fi, err)
			}
			ip(t, "netns", "del", "blue")
			meet()
			comesUp(t, h, spec)
			if fi, err := os.Stat(claim); err != nil || fi.Size() > 0 {
				t.Errorf("the claim on a link that is gone: %v, %v", fi, err)
			}
		})
	}
}

// replaceBlue is dieInBlue and a new blue, which has got the inode of the one where
// that was: the kernel gives those again, but when, nobody can tell, so that what was
// written down is changed to it.
func replaceBlue(t *testing.T, h Host) {
	t.Helper()
	blue(t)
	gone := place{Net: must(inodeOf("/run/netns/blue"))}
	dieInBlue(t, h)
	ip(t, "netns", "del", "blue")
	blue(t)
	now := place{Net: must(inodeOf("/run/netns/blue"))}
	if now == gone {
		return
	}
	inode := func(p place) string { return fmt.Sprintf(`"net":%d,`, p.Net) }
	journal := filepath.Join(netsFolder(h.Runtime), specs()["nat"].folder(), "journal")
	text := string(must(os.ReadFile(journal)))
	if !strings.Contains(text, inode(gone)) {
		t.Fatalf("the journal does not say where it is of: %s", text)
	}
	err := errors.Join(
		os.WriteFile(journal, []byte(strings.ReplaceAll(text, inode(gone), inode(now))), 0o600),
		os.RemoveAll(now.hostFolder(h.Runtime)),
		os.Rename(gone.hostFolder(h.Runtime), now.hostFolder(h.Runtime)),
	)
	if err != nil {
		t.Fatal(err)
	}
}

// TestNamespaceReplaced: what was left in a namespace that is gone concerns nobody
// in a later one that the kernel gave the same inode.
func TestNamespaceReplaced(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	if must(netCookie()) == 0 {
		skip(t, "cookie", "needs SO_NETNS_COOKIE, of Linux 5.14")
	}
	h, spec := testHost(t), specs()["nat"]
	nets := netsFolder(h.Runtime)
	sweepThere := func() string { return inBlue(t, os.Args[0], "sweep", filepath.Dir(h.Runtime)) }
	sweepHere := func() string { return strings.Join(must(Sweep(context.Background(), h)), "\n") + "\n" }
	forgotten := "network lan." + spec.folder()[4:] + ": forgotten, the network namespace that it was in is gone\n"
	for what, meet := range map[string]func() (report, want string){
		"swept there": func() (string, string) { return sweepThere(), forgotten },
		"swept here":  func() (string, string) { return sweepHere(), forgotten },
		"only its claim": func() (string, string) {
			if err := os.RemoveAll(nets); err != nil {
				t.Fatal(err)
			}
			return sweepThere(), "\n"
		},
		"attached there": func() (string, string) {
			m := blueMember(t, h)
			m.Process.Kill()
			m.Wait()
			awaitAlone(t)
			return "", ""
		},
	} {
		t.Run(what, func(t *testing.T) {
			replaceBlue(t, h)
			defer ip(t, "netns", "del", "blue")
			inBlue(t, "sysctl", "-qw", "net.ipv4.conf.eth1.forwarding=1") // its owner's wish
			before := blueState(t)
			if report, want := meet(); report != want {
				t.Errorf("reported %q, want %q", report, want)
			}
			if diff := cmp.Diff(before, blueState(t)); diff != "" {
				t.Errorf("changed:\n%s", diff)
			}
			if left, _ := filepath.Glob(filepath.Join(nets, spec.folder(), "*.json*")); left != nil {
				t.Errorf("left %q", left)
			}
		})
	}
}

// TestUpElsewhere: nobody joins a network of another namespace by mistake, and
// everybody may ask for it.
func TestUpElsewhere(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	blue(t)
	h, spec, ctx := testHost(t), specs()["nat"], context.Background()
	before := blueState(t)
	m := blueMember(t, h)
	want := ElsewhereError{Namespace: must(inodeOf("/run/netns/blue")), Way: fmt.Sprintf("/proc/%d/ns/net", only(t))}
	_, err := Attach(ctx, h, spec, testPort())
	isElsewhere(t, "attached", err, want)
	isElsewhere(t, "held", StartHolder(ctx, h, spec, nil), want)
	_, err = NewJoinPlan(ctx, h, spec, []PortSpec{testPort()}, Facts{})
	isElsewhere(t, "planned", err, ElsewhereError{Namespace: want.Namespace, Way: "/run/netns/blue"})
	if r := lan(t, h); len(r.Members) != 1 || len(r.Holders) != 0 {
		t.Errorf("report %+v", r)
	}
	m.Process.Kill()
	m.Wait()
	awaitAlone(t)
	if diff := cmp.Diff(before, blueState(t)); diff != "" {
		t.Errorf("left behind there:\n%s", diff)
	}
	comesUp(t, h, spec)
}

// TestJoinPlan: who joins a network is warned as who brings it up is, and one
// that has just ended is not up.
func TestJoinPlan(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, spec := testHost(t), specs()["nat"]
	n := must(Attach(context.Background(), h, spec, testPort()))
	facts := Facts{Firewall: firewall.Facts{Strangers: []string{"table inet other"}}}
	join := func() (Plan, error) {
		return NewJoinPlan(context.Background(), h, spec, []PortSpec{testPort()}, facts)
	}
	p, err := join()
	if err != nil || !p.Up || len(p.Warnings) != 1 {
		t.Errorf("plan %+v, %v; want one of a network that is up, with a warning", p, err)
	}
	saved := filepath.Join(netsFolder(h.Runtime), spec.folder(), specName)
	if err := os.Remove(saved); err != nil { // as a keeper does at its end
		t.Fatal(err)
	}
	if p, err := join(); p.Up || err != nil {
		t.Errorf("plan %+v, %v of a network that ends; want none", p, err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	awaitAlone(t)
}

// TestGuestElsewhere: a group's members may be in any network namespace, since a
// TAP works in each.
func TestGuestElsewhere(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h := openedLAN(t, labGroup)
	newPuppetIn(t, unix.CLONE_NEWNET, 1000, 7000).must(guestPort(1))
	if r := lan(t, h); len(r.Members) != 1 {
		t.Errorf("report %+v", r)
	}
}

// TestJournalsPlace: a journal is opened where it was written, and anywhere if it
// does not say where that was.
func TestJournalsPlace(t *testing.T) {
	now := must(here())
	for _, tt := range []struct {
		in    string
		of    uint64 // the network namespace
		opens bool
	}{
		{"", now.Net, true}, // of an earlier version
		{fmt.Sprintf(`"in":{"net":%d,"pid":%d},`, now.Net, now.PID), now.Net, true},
		{fmt.Sprintf(`"in":{"net":%d,"pid":%d},`, now.Net, now.PID+1), now.Net, true},
		{fmt.Sprintf(`"in":{"net":%d,"pid":%d},`, now.Net+1, now.PID), now.Net + 1, false},
		{fmt.Sprintf(`"in":{"net":%d,"pid":%d,"cookie":%d},`, now.Net, now.PID, now.Cookie), now.Net, true},
		{fmt.Sprintf(`"in":{"net":%d,"pid":%d,"cookie":%d},`, now.Net, now.PID, now.Cookie+1), now.Net, now.Cookie == 0},
	} {
		dir := t.TempDir()
		line := `{"v":1,` + tt.in + `"seq":1,"undo":{"op":"unforward","arg":{"link":"eth1"}}}` + "\n"
		if err := os.WriteFile(filepath.Join(dir, "journal"), []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(dir, slog.New(slog.DiscardHandler))
		if !tt.opens {
			isElsewhere(t, tt.in, err, ElsewhereError{Namespace: tt.of, Journal: filepath.Join(dir, "journal")})
			continue
		}
		if err != nil || len(j.entries) != 1 {
			t.Fatalf("%s: %v, %v", tt.in, j, err)
		}
		if err := j.file.Close(); err != nil {
			t.Error(err)
		}
	}
}
