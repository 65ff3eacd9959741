package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the command lines of testdata/*.txt. Each script has folders
// of its own for all that vmrun keeps.
func TestScripts(t *testing.T) {
	examples, err := filepath.Abs(filepath.Join("..", "..", "examples"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("EXAMPLES", examples)
			env.Setenv("SUDO_UID", "") // the fake is out of another user's reach
			env.Setenv("GORACE", noRaceSleep)
			env.Setenv("VMRUN_RUNTIME_DIR", filepath.Join(env.WorkDir, "run"))
			env.Setenv("VMRUN_STATE_DIR", filepath.Join(env.WorkDir, "state"))
			env.Setenv("VMRUN_ROOT_RUNTIME_DIR", filepath.Join(env.WorkDir, "roots"))
			env.Setenv("VMRUN_CACHE_DIR", filepath.Join(env.WorkDir, "cache"))
			env.Defer(func() { killAll(t, env.Vars) })
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond != "root" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			return os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": exitsWith,
		},
	})
}

// killAll ends the VMs that a script has left in the background. It should leave
// none.
func killAll(t *testing.T, env []string) {
	for _, e := range env {
		if path, ok := strings.CutPrefix(e, "PATH="); ok {
			kill := exec.Command(filepath.Join(filepath.SplitList(path)[0], "vmrun"), "kill", "--all")
			kill.Env = env
			if out, err := kill.CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("a script left VMs: %v\n%s", err, out)
			}
		}
	}
}

// exitsWith is the command `code N PROGRAM ARG…`: the program has to end with
// exit code N. What it prints is compared as after exec.
func exitsWith(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N PROGRAM ARG…")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = strings.TrimPrefix(exit.Error(), "exit status ")
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s", code, args[0])
	}
}
