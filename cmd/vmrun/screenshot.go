package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
	"github.com/vmrun/vmrun/vm/wire"
)

func newScreenshotCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "screenshot VM FILE.png",
		Short: "Save what a VM's screen shows as PNG",
		Long:  "Save what the screen of a VM with machine.display shows as PNG, to a file or with - to\nstdout.",
		Args:  attachArgs("a FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] == "-" && term.IsTerminal(int(os.Stdout.Fd())) {
				return usageError{cmd.CommandPath(), errors.New("a terminal shows no PNG: name a file")}
			}
			m, err := oneVM(cmd.Context(), args[0])
			if err == nil {
				err = living(m, "take a screenshot of")
			}
			if err != nil {
				return err
			}
			picture, err := control.Screenshot(cmd.Context(), m)
			if err != nil {
				return fmt.Errorf("take a screenshot of %s: %w", m.Name, err)
			}
			if args[1] == "-" {
				_, err = cmd.OutOrStdout().Write(picture)
				return err
			}
			return replaceFile(args[1], func(w io.Writer) error {
				_, err := w.Write(picture)
				return err
			})
		},
		ValidArgsFunction: completeVMThen(nil),
	}
}

const vncHelp = `Print how the screen of a VM with display = "vnc" or "spice" is reached: a unix socket
that only you can connect to, and its password.

With --listen the screen is at a TCP port of this host's loopback for as long as
vnc runs; with --open a viewer is started there, and vnc runs until it ends.`

// loopbackAny is a free port of the loopback.
const loopbackAny = "127.0.0.1:0"

func newVNCCommand() *cobra.Command {
	var listen string
	var open, asJSON bool
	cmd := &cobra.Command{
		Use:   "vnc VM",
		Short: "Tell how a VM's screen is reached, or open it",
		Long:  vncHelp,
		Args:  usageArgs(singleVM),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkLoopback(listen); err != nil {
				return usageError{cmd.CommandPath(), err}
			}
			m, err := oneVM(cmd.Context(), args[0])
			if err == nil {
				err = living(m, "show")
			}
			if err != nil {
				return err
			}
			d, err := control.Display(cmd.Context(), m)
			switch {
			case err != nil:
				return fmt.Errorf("show %s: %w", m.Name, err)
			case open && listen == "":
				return showScreen(cmd.Context(), cmd.OutOrStdout(), d, loopbackAny, true)
			case listen != "":
				return showScreen(cmd.Context(), cmd.OutOrStdout(), d, listen, open)
			case asJSON:
				return printJSON(cmd.OutOrStdout(), d)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s  unix:%s\npassword  %s\n", d.Kind, d.Socket, d.Password)
			return err
		},
		ValidArgsFunction: completeOneVM(vm.Machine.Alive),
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "", "serve the screen at this address of the loopback, as 127.0.0.1:5901, until interrupted")
	f.BoolVar(&open, "open", false, "start a viewer")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// checkLoopback holds the screen to this host: its protocol is not encrypted.
func checkLoopback(address string) error {
	if address == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("--listen %s: want an address and a port, as 127.0.0.1:5901", address)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("--listen %s: want an address of the loopback; from elsewhere use a tunnel, as ssh -L makes", address)
	}
	return nil
}

// showScreen serves a screen at a TCP port, until a signal comes or its viewer
// ends.
func showScreen(ctx context.Context, w io.Writer, d vm.Display, address string, open bool) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("serve screen: %w", err)
	}
	defer l.Close()
	if _, err := fmt.Fprintf(w, "%s  %s\npassword  %s\n", d.Kind, l.Addr(), d.Password); err != nil {
		return err
	}
	go serveScreen(l, d.Socket)
	if !open {
		<-ctx.Done()
		return nil
	}
	viewer, err := viewerCommand(ctx, d.Kind, l.Addr().String())
	if err != nil {
		return err
	}
	if err := viewer.Run(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("run viewer: %w", err)
	}
	return nil
}

// viewers are programs that show a screen, best first.
var viewers = map[string][]string{
	"vnc":   {"remote-viewer", "vncviewer", "gvncviewer"},
	"spice": {"remote-viewer"},
}

func viewerCommand(ctx context.Context, kind, address string) (*exec.Cmd, error) {
	for _, name := range viewers[kind] {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		target := kind + "://" + address
		if name != "remote-viewer" {
			host, port, _ := net.SplitHostPort(address)
			target = host + "::" + port
		}
		cmd := exec.CommandContext(ctx, path, target)
		cmd.Stderr = os.Stderr
		return cmd, nil
	}
	return nil, fmt.Errorf("find a viewer: none of %v is installed (apt-get install virt-viewer), or use --listen", viewers[kind])
}

func serveScreen(l net.Listener, socket string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			screen, err := wire.DialStream(context.Background(), filepath.Dir(socket), filepath.Base(socket))
			if err != nil {
				return // the VM has ended
			}
			defer screen.Close()
			go func() {
				defer screen.Close()
				io.Copy(screen, conn)
			}()
			io.Copy(conn, screen)
		}()
	}
}
