package main

import (
	"fmt"
	"net"
	"os"
	"strings"
)

// notifySocket is where systemd listens for news of its service: the
// NOTIFY_SOCKET of sd_notify(3), a path or, with an @, an abstract name. "": it
// does not ask for any.
type notifySocket string

// Words of sd_notify(3).
const (
	notifyReady    = "READY=1"
	notifyStopping = "STOPPING=1"
)

// notifyMainPID says which process the service is from now on.
func notifyMainPID(pid int) string { return fmt.Sprintf("MAINPID=%d", pid) }

// newNotifySocket is the one of the environment. It is taken out of it, as the
// messages are this process's to send.
func newNotifySocket() (notifySocket, error) {
	const variable = "NOTIFY_SOCKET"
	name := os.Getenv(variable)
	os.Unsetenv(variable)
	switch {
	case name == "":
		return "", fmt.Errorf("--notify: there is no NOTIFY_SOCKET: it is for services of systemd with Type=notify")
	case name[0] != '/' && name[0] != '@':
		return "", fmt.Errorf("--notify: NOTIFY_SOCKET %q: want a path or an abstract socket", name)
	}
	return notifySocket(name), nil
}

// tell sends words in one message, which arrives as a whole or not at all.
func (n notifySocket) tell(words ...string) error {
	if n == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: string(n), Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(strings.Join(words, "\n"))); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}
