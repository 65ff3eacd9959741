package netsetup

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmrun/vmrun/netsetup/uplink"
)

// obeyed is a dead-man in this process that has orders; its words are what is
// written to in, and its end comes by the channel.
func obeyed(t *testing.T, keeper int, confirm time.Duration) (h Host, in io.WriteCloser, end <-chan error) {
	t.Helper()
	h = testHost(t)
	if err := os.MkdirAll(filepath.Join(netsFolder(h.Runtime), "lan"), 0o700); err != nil {
		t.Fatal(err)
	}
	fromKeeper, toDeadman := io.Pipe()
	fromDeadman, toKeeper := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- standBehind(context.Background(), h, "lan", fromKeeper, toKeeper) }()
	text, err := json.Marshal(orders{Version: journalVersion, Keeper: keeper, Bridge: "vmunone", Confirm: confirm})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := toDeadman.Write(append(text, '\n')); err != nil {
		t.Fatal(err)
	}
	if word, err := bufio.NewReader(fromDeadman).ReadString('\n'); err != nil || word != wordArmed+"\n" {
		t.Fatalf("it answered %q, %v", word, err)
	}
	return h, toDeadman, done
}

// TestDeadmanKillsAKeeperThatHangs: one that does not confirm is killed.
func TestDeadmanKillsAKeeperThatHangs(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	keeper := exec.Command("sleep", "1000")
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	_, in, end := obeyed(t, keeper.Process.Pid, time.Millisecond)
	if err := keeper.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the keeper ended with %v", err)
	}
	in.Close() // as the kernel does
	if err := <-end; err != nil {
		t.Error(err)
	}
}

// TestDeadmanRereads: what the journal has by the keeper's word is known when it is
// gone later.
func TestDeadmanRereads(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	keeper := exec.Command("sleep", "1000")
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	h, in, end := obeyed(t, keeper.Process.Pid, 0)
	ip(t, "link", "add", "vmunone", "type", "bridge") // down: what the orders say counts
	ip(t, "link", "add", "eth0", "type", "veth", "peer", "name", "far")
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(netsFolder(h.Runtime), "lan")
	j, err := openJournal(dir, h.log())
	if err != nil {
		t.Fatal(err)
	}
	address := uplink.Address{Prefix: netip.MustParsePrefix("192.0.2.2/24"), Valid: uplink.Forever, Preferred: uplink.Forever}
	back := giveBack{Uplink: "eth0", Index: link.Index, Bridge: "vmunone", State: uplink.State{Addresses: []uplink.Address{address}}}
	if err := j.record(back); err != nil {
		t.Fatal(err)
	}
	// The second of two words more is taken when the first has been heeded.
	for _, word := range []string{wordNoted, wordUndoing, wordUndoing} {
		if _, err := fmt.Fprintln(in, word); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "journal")); err != nil {
		t.Fatal(err)
	}
	keeper.Process.Kill()
	keeper.Wait()
	in.Close() // as the kernel does
	if err := <-end; err != nil {
		t.Error(err)
	}
	if got := ip(t, "addr", "show", "dev", "eth0"); !strings.Contains(got, "192.0.2.2/24") {
		t.Errorf("the uplink does not have its address back:\n%s", got)
	}
}

// TestDeadmanIsDisarmed: neither a confirmed nor a disarmed keeper is killed.
func TestDeadmanIsDisarmed(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	keeper := exec.Command("sleep", "1000")
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	_, in, end := obeyed(t, keeper.Process.Pid, time.Minute)
	for _, word := range []string{wordConfirmed, wordDisarmed} {
		if _, err := fmt.Fprintln(in, word); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-end; err != nil {
		t.Error(err)
	}
	if err := keeper.Process.Kill(); err != nil {
		t.Errorf("the keeper was ended: %v", err)
	}
	keeper.Wait()
}

// TestDeadmanRefusesOrders: of nobody, of another version, for nobody.
func TestDeadmanRefusesOrders(t *testing.T) {
	for name, text := range map[string]string{
		"none":            "",
		"torn":            `{"v":1,` + "\n",
		"another version": fmt.Sprintf(`{"v":%d,"keeper":%d}`+"\n", journalVersion+1, os.Getpid()),
		"no keeper":       fmt.Sprintf(`{"v":%d,"keeper":0}`+"\n", journalVersion),
	} {
		r, w := io.Pipe()
		go func() { io.WriteString(w, text); w.Close() }()
		if err := standBehind(context.Background(), testHost(t), "lan", r, nopCloser{io.Discard}); err == nil {
			t.Errorf("%s: obeyed", name)
		}
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
