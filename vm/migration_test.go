package vm

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/vmrun/vmrun/qmp"
)

// TestMigrationSettles: QEMU, asked too soon after a migration, refuses cont, and
// the guest would stay stopped.
func TestMigrationSettles(t *testing.T) {
	here, there, err := socketpair("fake")
	if err != nil {
		t.Fatal(err)
	}
	states := []string{"finish-migrate", "finish-migrate", "postmigrate"}
	var asked []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer there.Close()
		fmt.Fprintln(there, `{"QMP": {"version": {"qemu": {"major": 9, "minor": 9, "micro": 9}, "package": ""}, "capabilities": []}}`)
		for in := json.NewDecoder(there); ; {
			var cmd struct {
				Execute string          `json:"execute"`
				ID      json.RawMessage `json:"id"`
			}
			if in.Decode(&cmd) != nil {
				return
			}
			asked = append(asked, cmd.Execute)
			reply := `{}`
			if cmd.Execute == "query-status" {
				reply, states = fmt.Sprintf(`{"status": %q}`, states[0]), states[1:]
			}
			fmt.Fprintf(there, `{"return": %s, "id": %s}`+"\n", reply, cmd.ID)
		}
	}()
	client, err := qmp.NewClient(t.Context(), here)
	if err != nil {
		t.Fatal(err)
	}
	if err := (migration{client: client}).settle(t.Context()); err != nil {
		t.Error(err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	<-done
	if want := []string{"qmp_capabilities", "query-status", "query-status", "query-status"}; !slices.Equal(asked, want) {
		t.Errorf("asked %v, want %v", asked, want)
	}
}
