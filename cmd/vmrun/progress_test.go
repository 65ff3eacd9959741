package main

import (
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
)

// On a terminal the line moves, messages go above it, and it is taken away.
func TestProgressSpins(t *testing.T) {
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	stderr := &lineWriter{w: in}
	r := &runner{stderr: stderr, log: newMessages(stderr, false), spins: true}
	done := r.progress("waiting for ip")
	first := make([]byte, 256)
	n, err := out.Read(first) // comes when it has taken long
	if err != nil || !strings.HasPrefix(string(first[:n]), clearLine+"⠋ waiting for ip (") {
		t.Errorf("shown is %q, %v", first[:n], err)
	}
	r.log.Info("joined")
	done()
	in.Close()
	rest, _ := io.ReadAll(out)
	if !regexp.MustCompile(`vmrun: joined\n\S waiting for ip`).Match(rest) {
		t.Errorf("a message does not go above the line: %q", rest)
	}
	if !strings.HasSuffix(string(rest), clearLine) {
		t.Errorf("the line stays: %q", rest)
	}
}

// Elsewhere a stage is a line, and what is quick is not told, nor anything with -q.
func TestProgressLines(t *testing.T) {
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	stderr := &lineWriter{w: in}
	r := &runner{stderr: stderr, log: newMessages(stderr, false)}
	r.progress("quick")()
	quiet := &runner{stderr: stderr, log: r.log, options: runOptions{quiet: true}}
	defer quiet.progress("quiet")()
	done := r.progress("waiting for ip")
	line := make([]byte, 64)
	n, _ := out.Read(line)
	done()
	in.Close()
	rest, _ := io.ReadAll(out)
	if got := string(line[:n]) + string(rest); got != "vmrun: waiting for ip\n" {
		t.Errorf("told is %q", got)
	}
}
