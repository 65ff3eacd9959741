package vm

import (
	"crypto/des"
	"errors"
	"fmt"
	"image"
	"io"
	"math/bits"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmrun/vmrun/profiles"
)

// launchScreen launches a real machine with a screen, which shows its firmware.
func launchScreen(t *testing.T, display profiles.Display) *Instance {
	t.Helper()
	h, p := realFixture(t)
	p.Machine.Display = display
	plan, err := NewPlan(&p, h)
	if err != nil {
		t.Fatal(err)
	}
	i, err := Launch(t.Context(), plan, h, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	})
	return i
}

func dialDisplay(t *testing.T, d Display) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	return conn
}

// logIn does VNC's handshake and authentication (RFC 6143, section 7.1 and
// 7.2.2), and tells whether the password was right.
func logIn(conn net.Conn, password string) (bool, error) {
	hello, types := make([]byte, 12), make([]byte, 2)
	if _, err := io.ReadFull(conn, hello); err != nil {
		return false, err
	}
	fmt.Fprint(conn, "RFB 003.008\n")
	if _, err := io.ReadFull(conn, types); err != nil {
		return false, err
	}
	const vncAuthentication = 2
	if string(hello) != "RFB 003.008\n" || types[0] != 1 || types[1] != vncAuthentication {
		return false, fmt.Errorf("greeted by %q, types % x", hello, types)
	}
	conn.Write([]byte{vncAuthentication})
	challenge := make([]byte, 16)
	if _, err := io.ReadFull(conn, challenge); err != nil {
		return false, err
	}
	key := make([]byte, 8)
	copy(key, password)
	for i, b := range key {
		key[i] = bits.Reverse8(b) // as every VNC does it
	}
	cipher, err := des.NewCipher(key)
	if err != nil {
		return false, err
	}
	cipher.Encrypt(challenge[:8], challenge[:8])
	cipher.Encrypt(challenge[8:], challenge[8:])
	conn.Write(challenge)
	result := make([]byte, 4)
	_, err = io.ReadFull(conn, result)
	return result[3] == 0, err
}

// Viewers of VNC get in with the password, several at once, and without it not.
func TestVNC(t *testing.T) {
	i := launchScreen(t, profiles.DisplayVNC)
	d, err := i.Display()
	if err != nil || d.Kind != "vnc" || len(d.Password) != vncPasswordLen {
		t.Fatalf("display %+v, %v", d, err)
	}
	for _, password := range []string{d.Password, "wrong", "", d.Password} {
		got, err := logIn(dialDisplay(t, d), password)
		if err != nil {
			t.Fatal(err)
		}
		if want := password == d.Password; got != want {
			t.Errorf("let in %v with %q, want %v", got, password, want)
		}
	}
}

// SPICE greets whoever connects, and wants a ticket.
func TestSPICE(t *testing.T) {
	i := launchScreen(t, profiles.DisplaySPICE)
	d, err := i.Display()
	if err != nil || d.Kind != "spice" || len(d.Password) <= vncPasswordLen {
		t.Fatalf("display %+v, %v", d, err)
	}
	conn := dialDisplay(t, d)
	// SpiceLinkHeader and SpiceLinkMess: version 2.2, the main channel, no capabilities.
	link := append([]byte("REDQ"), 2, 0, 0, 0, 2, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 18, 0, 0, 0)
	if _, err := conn.Write(link); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 20)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer[:4]) != "REDQ" || answer[16] != 0 {
		t.Errorf("SPICE answers %q, %v", answer, err)
	}
}

// A screenshot is what the firmware shows, and costs no open file.
func TestScreenshot(t *testing.T) {
	i := launchScreen(t, profiles.DisplayVNC)
	before := openFiles()
	for range 3 {
		picture, err := i.Screenshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if size := picture.Bounds().Size(); size.X < 320 || size.Y < 200 {
			t.Errorf("the screen has %v", size)
		}
	}
	for _, fd := range openFiles() { // what the launch has closed meanwhile is there no more
		if !slices.Contains(before, fd) {
			t.Errorf("file %s is open; before were %v", fd, before)
		}
	}
}

func TestNoDisplay(t *testing.T) {
	f := newFixture(t, "serve")
	i, err := Launch(t.Context(), f.plan(t), f.host, f.options)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	if _, err := i.Display(); !errors.Is(err, ErrNoDisplay) {
		t.Error(err)
	}
	if _, err := i.Screenshot(t.Context()); !errors.Is(err, ErrNoDisplay) {
		t.Error(err)
	}
}

func TestReadPPM(t *testing.T) {
	picture, err := readPPM(strings.NewReader("P6\n2 1\n255\n\x01\x02\x03\xff\x00\x7f"))
	if err != nil || picture.Bounds() != image.Rect(0, 0, 2, 1) {
		t.Fatalf("%v, %v", picture, err)
	}
	for x, want := range [][3]uint32{{1, 2, 3}, {255, 0, 127}} {
		r, g, b, _ := picture.At(x, 0).RGBA()
		if got := [3]uint32{r >> 8, g >> 8, b >> 8}; got != want {
			t.Errorf("pixel %d is %v, want %v", x, got, want)
		}
	}
	for _, text := range []string{"", "P5\n2 1\n255\n", "P6\n2 1\n255\n\x01", "P6\n0 1\n255\n", "P6\n2 1\n65535\n", "P6\n99999 99999\n255\n", "P6\n-1 1\n255\n"} {
		if _, err := readPPM(strings.NewReader(text)); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}
