package netsetup

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// obeyed is a dead-man in this process that has orders; its words are what is
// written to in, and its end comes by the channel.
func obeyed(t *testing.T, keeper int, confirm time.Duration) (in io.WriteCloser, end <-chan error) {
	t.Helper()
	h := testHost(t)
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
	return toDeadman, done
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
	in, end := obeyed(t, keeper.Process.Pid, time.Millisecond)
	if err := keeper.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the keeper ended with %v", err)
	}
	in.Close() // as the kernel does
	if err := <-end; err != nil {
		t.Error(err)
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
	in, end := obeyed(t, keeper.Process.Pid, time.Minute)
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
