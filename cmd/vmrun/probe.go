package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/vm"
)

// probe is how the checks look at the host.
type probe struct {
	root   string // where the host's files are
	host   vm.Host
	output func(ctx context.Context, program string, args ...string) (string, error)
	// network reads the facts that networks are planned from, and the instance
	// that their names derive from.
	network func() (netsetup.Facts, string, error)
}

// hostProbe looks at this host.
func hostProbe() (probe, error) {
	host, err := detectHost()
	if err != nil {
		return probe{}, err
	}
	return probe{
		root:   "/",
		host:   host,
		output: commandOutput,
		network: func() (netsetup.Facts, string, error) {
			return netsetup.ReadFacts(networkHost(host))
		},
	}, nil
}

// path is where the host's file is.
func (p probe) path(file string) string { return filepath.Join(p.root, file) }

// read returns a small file of the host without surrounding space, "" where
// there is none.
func (p probe) read(file string) string {
	data, err := os.ReadFile(p.path(file))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// opens tells whether a device can be opened for reading and writing.
func (p probe) opens(device string) error {
	f, err := os.OpenFile(p.path(device), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// firstLine runs a program and returns the first line of what it prints.
func (p probe) firstLine(ctx context.Context, name string, args ...string) (string, error) {
	out, err := p.output(ctx, name, args...)
	line, _, _ := strings.Cut(out, "\n")
	return line, err
}

// defaultLinks lists the interfaces that hold a default route.
func (p probe) defaultLinks() []string {
	var links []string
	lines := bufio.NewScanner(strings.NewReader(p.read("/proc/net/route")))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) >= 8 && f[1] == "00000000" && f[7] == "00000000" {
			links = append(links, f[0])
		}
	}
	return links
}

// commandOutput runs a program and returns what it prints. Its error has the
// last line of what it wrote to stderr.
func commandOutput(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		return string(out), fmt.Errorf("run %s: %w: %s", name, err, lines[len(lines)-1])
	}
	return string(out), nil
}
