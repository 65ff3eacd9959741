package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/vmrun/vmrun/integration/internal/debian"
	"github.com/vmrun/vmrun/integration/internal/feature"
)

// guestsTimeout bounds what is measured with one kind of guests.
const guestsTimeout = 10 * time.Minute

// measureGuests measures what is done with VMs that run, and adds it to results.
// What takes seconds is measured in fewer rounds.
func (b *bench) measureGuests(r results, rounds int) error {
	g := guests{bench: b, rounds: rounds, boots: max(rounds/3, 1), copies: max(rounds/8, 1), file: filepath.Join(b.dir, "file"), back: filepath.Join(b.dir, "back")}
	if err := run("head -c 100M /dev/urandom >" + g.file); err != nil {
		return err
	}
	defer os.Remove(g.file)
	defer os.Remove(g.back)
	for _, group := range []struct {
		name    string
		measure func(results) error
	}{{"50 VMs", g.measureFifty}, {"a micro guest", g.measureMicro}, {"Debian", g.measureDebian}} {
		ctx, cancel := context.WithTimeout(context.Background(), guestsTimeout)
		defer cancel()
		g.ctx = ctx
		err := group.measure(r)
		if _, kill := g.vmrun("kill", "--all"); err == nil {
			err = kill
		}
		if err == nil {
			err = b.asBefore(ctx)
		}
		if err != nil {
			return fmt.Errorf("measure %s: %w", group.name, err)
		}
	}
	return nil
}

// guests are VMs that are measured while they run.
type guests struct {
	*bench
	ctx                   context.Context
	rounds, boots, copies int    // how often the command is called, VMs are booted, files are copied
	file, back            string // 100 MiB, and where they come back
	ssh                   sshGuest
}

// call runs a program to its end, without input, and returns how many
// milliseconds it took.
func (g *guests) call(name string, args ...string) (float64, error) {
	cmd := exec.CommandContext(g.ctx, name, args...)
	cmd.Env = g.env
	started := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(started)
	if err != nil {
		err = fmt.Errorf("run %v: %w: %s", cmd.Args, err, out)
	}
	return took.Seconds() * 1000, err
}

func (g *guests) vmrun(args ...string) (float64, error) {
	return g.call(g.host.Executable, args...)
}

// start boots a VM in the background.
func (g *guests) start(name, profile string, flags ...string) (float64, error) {
	file := filepath.Join(g.dir, name+".toml")
	if err := os.WriteFile(file, []byte("[machine]\naccel = \"tcg\"\n"+profile), 0o644); err != nil {
		return 0, err
	}
	return g.vmrun(append(append([]string{"run", "-d"}, flags...), file)...)
}

// measureFifty lists many VMs.
func (g *guests) measureFifty(r results) error {
	for i := range 50 {
		if _, err := g.start(fmt.Sprintf("vm%d", i), fmt.Sprintf("args = [\"-bios\", %q]\n[[nics]]\nnetwork = \"user\"\n", g.firmware)); err != nil {
			return err
		}
	}
	for range g.rounds {
		took, err := g.vmrun("ps")
		if err != nil {
			return err
		}
		r.add(map[column]sample{vmrun: {listFifty: took}})
	}
	return nil
}

// measureMicro measures with a micro guest alone: others would take the
// processor just then.
func (g *guests) measureMicro(r results) error {
	if _, err := g.startMicro("micro", ""); err != nil {
		return err
	}
	for _, measure := range []func(results) error{g.measureExec, g.measureRestore, g.measureMicroCopies, g.measureConsole} {
		if err := measure(r); err != nil {
			return err
		}
	}
	return nil
}

func (g *guests) startMicro(name, nics string) (float64, error) {
	kernel, err := feature.Kernel()
	if err != nil {
		return 0, err
	}
	return g.start(name, fmt.Sprintf("[boot]\nkernel = %q\ninitrd = \"micro\"\n%s", kernel.Image, nics), "--wait", "agent")
}

// measureExec compares a command by exec with what the guest's shell needs to
// run it: the difference is exec's.
func (g *guests) measureExec(r results) error {
	const loop = `i=0; while [ $i -lt $0 ]; do /bin/busybox true; i=$((i+1)); done`
	const many = 50
	for range g.rounds {
		var took [3]float64
		for i, command := range [][]string{{"/bin/busybox", "true"}, {"sh", "-c", loop, "0"}, {"sh", "-c", loop, strconv.Itoa(many)}} {
			var err error
			if took[i], err = g.vmrun(append([]string{"exec", "micro", "--"}, command...)...); err != nil {
				return err
			}
		}
		own := (took[2] - took[1]) / many
		r.add(map[column]sample{vmrun: {execWhole: took[0], execOwn: own, execBeyond: took[0] - own}})
	}
	return nil
}

// measureConsole weighs the supervisor of a VM with a network once a console
// shows something.
func (g *guests) measureConsole(r results) error {
	if _, err := g.vmrun("kill", "micro"); err != nil {
		return err
	}
	if _, err := g.startMicro("watched", "[[nics]]\nnetwork = \"nat\"\n"); err != nil {
		return err
	}
	supervisor, err := find(g.host.Executable + " supervisor watched")
	if err != nil {
		return err
	}
	for range g.boots {
		console, err := g.attach("watched")
		if err != nil {
			return err
		}
		weight, err := memory(supervisor)
		console.cmd.Process.Kill()
		console.cmd.Wait() // it was killed: that is no error
		if err != nil {
			return err
		}
		r.add(map[column]sample{vmrun: {consolePSS: weight}})
	}
	return nil
}

// attach attaches a console, whose input stays open, and waits until it has
// shown a line.
func (g *guests) attach(name string) (*program, error) {
	cmd := exec.Command(g.host.Executable, "console", "--quiet", "--lines", "-1", name)
	cmd.Env = g.env
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p, err := startProgram(cmd)
	if err != nil {
		return nil, err
	}
	if _, err = p.await(g.ctx, ""); err != nil {
		input.Close()
		p.cmd.Process.Kill()
		p.cmd.Wait()
	}
	return p, err
}

// measureRestore boots the micro guest and restores it from a snapshot by turns,
// each time until it answers.
func (g *guests) measureRestore(r results) error {
	if _, err := g.vmrun("snapshot", "save", "micro", "ready"); err != nil {
		return err
	}
	for range g.boots {
		if _, err := g.vmrun("kill", "micro"); err != nil {
			return err
		}
		restore, err := g.vmrun("snapshot", "restore", "micro", "ready", "--wait", "agent")
		if err != nil {
			return err
		}
		if _, err := g.vmrun("kill", "micro"); err != nil {
			return err
		}
		boot, err := g.startMicro("micro", "")
		if err != nil {
			return err
		}
		r.add(map[column]sample{vmrun: {coldBoot: boot, restored: restore, restoreGain: boot / restore}})
	}
	_, err := g.vmrun("snapshot", "rm", "micro", "ready")
	return err
}

func (g *guests) measureMicroCopies(r results) error {
	return g.measureCopies(r, g.copies, courier{vmrun, intoMicro, outOfMicro, g.copyBy("micro", "/tmp/file")})
}

// measureDebian compares cp with scp by turns, and measures it by the other agent.
func (g *guests) measureDebian(r results) error {
	if err := g.startDebian(); err != nil {
		return err
	}
	// That one takes a minute, and once is enough to tell.
	if err := g.measureCopies(r, 1, courier{vmrun, intoQGA, outOfQGA, g.copyBy("qga", "/root/file")}); err != nil {
		return err
	}
	return g.measureCopies(r, g.copies,
		courier{vmrun, intoDebian, outOfDebian, g.copyBy("own", "/root/file")},
		courier{scp, intoDebian, outOfDebian, g.ssh.copyBy(g)})
}

// startDebian boots Debian twice: with qemu-guest-agent and an SSH server that is
// reached, and with vmrun's agent besides.
func (g *guests) startDebian() error {
	guest, err := debian.Make()
	if err != nil {
		return err
	}
	if g.ssh.port, err = freePort(); err != nil {
		return err
	}
	g.ssh.key = guest.Key
	forward := fmt.Sprintf("[[nics]]\nnetwork = \"user\"\nforward = [\"%d:22\"]\n", g.ssh.port)
	if _, err := g.start("qga", guest.Profile()+forward, "--wait", "agent"); err != nil {
		return err
	}
	if _, err := g.start("own", guest.Profile(), "--wait", "agent"); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"cp", g.host.Executable, "own:/usr/local/bin/vmrun"},
		{"exec", "own", "--", "systemd-run", "--quiet", "/usr/local/bin/vmrun", "agent"},
		{"wait", "own", "--for", "agent"},
	} {
		if _, err := g.vmrun(args...); err != nil {
			return err
		}
	}
	return g.ssh.await(g)
}

// courier copies a file into a guest and out of it.
type courier struct {
	column    column
	into, out measure
	copy      func(into bool) (float64, error)
}

func (g *guests) copyBy(name, path string) func(bool) (float64, error) {
	return func(into bool) (float64, error) {
		if into {
			return g.vmrun("cp", g.file, name+":"+path)
		}
		return g.vmrun("cp", name+":"+path, g.back)
	}
}

// measureCopies copies there and back, and compares what came back.
func (g *guests) measureCopies(r results, times int, couriers ...courier) error {
	for range times {
		for _, c := range couriers {
			into, err := c.copy(true)
			if err != nil {
				return err
			}
			out, err := c.copy(false)
			if err != nil {
				return err
			}
			if _, err := g.call("cmp", g.file, g.back); err != nil {
				return err
			}
			r.add(map[column]sample{c.column: {c.into: into, c.out: out}})
		}
	}
	return nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// sshGuest is a guest's SSH server.
type sshGuest struct {
	port int
	key  string
}

func (s sshGuest) options(port string) []string {
	return []string{port, strconv.Itoa(s.port), "-i", s.key, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"}
}

// await waits until the server answers, which may come after the agent.
func (s sshGuest) await(g *guests) error {
	for {
		_, err := g.call("ssh", append(s.options("-p"), "root@127.0.0.1", "true")...)
		if err == nil || g.ctx.Err() != nil {
			return err
		}
		time.Sleep(time.Second)
	}
}

func (s sshGuest) copyBy(g *guests) func(bool) (float64, error) {
	const path = "root@127.0.0.1:/root/file2"
	return func(into bool) (float64, error) {
		if into {
			return g.call("scp", append(s.options("-P"), g.file, path)...)
		}
		return g.call("scp", append(s.options("-P"), path, g.back)...)
	}
}
