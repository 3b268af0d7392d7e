package testbed_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The real kubectl runs the tool as its plugin, and completes by it: commands, flags, and names of leases.
func TestKubectl(t *testing.T) {
	if !*long {
		t.Skip("without -long: builds kubectl")
	}
	t.Parallel()
	c := newCLI(t)
	bin := t.TempDir()
	kubectl := filepath.Join(bin, "kubectl")
	build := exec.Command("go", "build", "-o", kubectl, "k8s.io/kubernetes/cmd/kubectl")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"kubectl-leasehold", "kubectl_complete-leasehold"} {
		if err := os.Symlink(built.path, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	c.start("create", "job").wantCode(0)
	for _, tt := range []struct {
		args string
		code int
		want string // in the output or, with a code, in the errors
	}{
		{"leasehold get -n NS --no-headers", 0, "job   free   <none>   <none>   <none>   <none>   0\n"},
		{"leasehold -n NS get job -o name", 0, "lease.coordination.k8s.io/job\n"},
		{"leasehold --help", 0, "\nUsage:\n  kubectl leasehold COMMAND [FLAGS] [ARGUMENTS]\n"},
		{"leasehold get --help", 0, "\n  kubectl leasehold get -A -l team=storage\n"},
		{"leasehold get -n NS missing", 1, "error: no lease NS/missing\n"},
		{"leasehold get --bogus", 2, `see "kubectl leasehold get --help"`},
		{"plugin list --name-only", 0, "kubectl-leasehold\n"},
		{"__complete leaseh", 0, "leasehold\tThe command leasehold is a plugin installed by the user\n:4\n"},
		{"__complete leasehold re", 0, "release\nreport\n:4\n"},
		{"__complete leasehold handover -n NS j", 0, "job\n:4\n"},
		{"__complete leasehold get --namespace=NS j", 0, "job\n:4\n"},
		{"__complete leasehold run --stop-t", 0, "--stop-timeout\n:4\n"},
		{"__complete leasehold get -o js", 0, "json\njsonpath=\njsonpath-file=\njsonpath-as-json=\n:6\n"},
	} {
		want := strings.ReplaceAll(tt.want, "NS", c.ns)
		cmd := exec.Command(kubectl, strings.Fields(strings.ReplaceAll(tt.args, "NS", c.ns))...)
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+c.dir,
			"KUBECONFIG="+c.server.Kubeconfig())
		var stdout, stderr strings.Builder
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		cmd.Run()
		got := stdout.String()
		if tt.code != 0 {
			got = stderr.String()
		}
		if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(got, want) {
			t.Errorf("kubectl %s: exit code %d, want %d; %q, want %q; errors: %s", tt.args, code, tt.code, got, want,
				stderr.String())
		}
	}
}
