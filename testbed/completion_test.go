package testbed_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

// The shells complete what a user types: commands, flags and their values, and the names of leases and namespaces.
func TestCompletion(t *testing.T) {
	for _, shell := range []struct {
		name  string
		args  []string
		setUp string // as in a user's startup file
	}{
		{"bash", []string{"--norc", "--noprofile", "-i"},
			`bind 'set bell-style none'; bind 'set enable-bracketed-paste off'`},
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
			// The namespace of the current context has no leases; that of the other context has them.
			config, err := clientcmd.LoadFromFile(c.server.Kubeconfig())
			if err != nil {
				t.Fatal(err)
			}
			other := config.Contexts[config.CurrentContext].DeepCopy()
			other.Namespace = c.ns
			config.Contexts["other"] = other
			kubeconfig := filepath.Join(c.dir, "kubeconfig")
			if err := clientcmd.WriteToFile(*config, kubeconfig); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(path, shell.args...)
			cmd.Dir = c.dir
			cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(built.path)+":"+os.Getenv("PATH"),
				"KUBECONFIG="+kubeconfig,
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
				{"leasehold get --namespace=" + c.ns + " j", "leasehold get --namespace=" + c.ns + " job"},
				{"leasehold -n " + c.ns + " get j", "leasehold -n " + c.ns + " get job"},
				{"leasehold get -n " + c.ns[:len(c.ns)-2], "leasehold get -n " + c.ns},
				{"leasehold get --namespace=" + c.ns[:len(c.ns)-2], "leasehold get --namespace=" + c.ns},
				{"leasehold get --context=other j", "leasehold get --context=other job"},
				{"leasehold get --context ot", "leasehold get --context other"},
				{"leasehold get -o go-template=", "leasehold get -o go-template="},
			} {
				terminal.typed(line.typed + "\t")
				c.await(fmt.Sprintf("completed: %s", line.typed),
					func() bool { return terminal.line() == "ready> "+line.want })
				terminal.typed("\x15\n") // kill the line
				c.await("ready", func() bool { return terminal.line() == "ready>" })
			}
		})
	}
}
