// Package guest is the inside of the micro guest: a machine that has vmrun as
// its init and hardly anything else. It takes part in no other process.
package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// ConfigPath is where the initramfs has its Config, as JSON.
const ConfigPath = "/vmrun/guest.json"

// ExitPort is the name of the virtio-serial port to which the guest writes the
// command's exit code, as "exit N\n", before it powers off.
const ExitPort = "org.vmrun.exit"

// Config is what the host tells the guest.
type Config struct {
	Modules      []string      `json:"modules,omitempty"` // paths, in load order
	Missing      []string      `json:"missing,omitempty"` // names of modules that the host's kernel lacks
	Command      []string      `json:"command,omitempty"` // nil: the shell
	Shell        string        `json:"shell,omitempty"`   // path; "": there is none
	LeaseTimeout time.Duration `json:"lease_timeout_ns"`  // 0: defaultLeaseTimeout
}

// defaultLeaseTimeout is how long a NIC may take to get an address.
const defaultLeaseTimeout = 30 * time.Second

// loadConfig reads the guest's configuration.
func loadConfig(path string) (Config, error) {
	c := Config{}
	data, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("parse configuration %s: %w", path, err)
	}
	if c.LeaseTimeout == 0 {
		c.LeaseTimeout = defaultLeaseTimeout
	}
	return c, nil
}
