// Package childtest tests that programs leave nothing behind.
package childtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Command is the test binary with an environment variable set, which has its TestMain call main, and with a temporary
// directory of its own.
func Command(t *testing.T, env string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), env+"=1", "TMPDIR="+t.TempDir())
	return cmd
}

// WantNothingLeft looks for files of a Command that has ended, and for processes with its environment.
func WantNothingLeft(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	env := cmd.Env[len(cmd.Env)-1]
	left := func() (left []string) {
		files, _ := filepath.Glob(strings.TrimPrefix(env, "TMPDIR=") + "/*")
		left = append(left, files...)
		processes, _ := filepath.Glob("/proc/[0-9]*/environ") // none on other systems than Linux
		for _, p := range processes {
			if data, _ := os.ReadFile(p); bytes.Contains(data, []byte(env)) {
				left = append(left, fmt.Sprintf("process %s", filepath.Base(filepath.Dir(p))))
			}
		}
		return left
	}
	for deadline := time.Now().Add(20 * time.Second); left() != nil && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond) // the children of one that was killed need a moment
	}
	if l := left(); l != nil {
		t.Errorf("left behind: %v", l)
	}
}
