package testbed_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Completed by the shells themselves, as somebody types it: commands, flags, and the names of leases.
func TestCompletion(t *testing.T) {
	for _, shell := range []struct {
		name  string
		args  []string
		setUp string // what people have in the file that the shell reads first
	}{
		{"bash", []string{"--norc", "--noprofile", "-i"}, `bind 'set bell-style none'; bind 'set enable-bracketed-paste off'`},
		{"zsh", []string{"-f", "-i"}, `unsetopt zle_bracketed_paste prompt_cr beep`},
	} {
		t.Run(shell.name, func(t *testing.T) {
			path, err := exec.LookPath(shell.name)
			if err != nil {
				t.Skip(shell.name + " is not installed")
			}
			c := newCLI(t)
			c.start("create", "job").wantCode(0)
			c.start("create", "of-others").wantCode(0)
			cmd := exec.Command(path, shell.args...)
			cmd.Dir = c.dir
			cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(built.path)+":"+os.Getenv("PATH"), "KUBECONFIG="+c.server.Kubeconfig(),
				"HOME="+c.dir, "TERM=xterm", "PS1=$ ")
			terminal := openTerminal(t, cmd, 200, 50)
			terminal.typed(shell.setUp + "\n")
			terminal.typed("source <(leasehold completion " + shell.name + ") && PS1='ready> '\n")
			c.await("ready", func() bool { return terminal.line() == "ready>" })
			for _, line := range []struct{ typed, want string }{
				{"leasehold cl", "leasehold claim"},
				{"leasehold run --stop-t", "leasehold run --stop-timeout"},
				{"leasehold get -n " + c.ns + " j", "leasehold get -n " + c.ns + " job"},
				{"leasehold claim --no-wait -n " + c.ns + " of", "leasehold claim --no-wait -n " + c.ns + " of-others"},
				{"leasehold completion z", "leasehold completion zsh"},
			} {
				terminal.typed(line.typed + "\t")
				c.await(fmt.Sprintf("completed: %s", line.typed), func() bool { return terminal.line() == "ready> "+line.want })
				terminal.typed("\x15\n") // kill the line
				c.await("ready", func() bool { return terminal.line() == "ready>" })
			}
		})
	}
}
