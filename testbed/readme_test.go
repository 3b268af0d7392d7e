package testbed_test

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

// The program in the README leads, answers its probes and, at SIGTERM, stops its work, releases its lease and exits.
func TestReadmeProgram(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	dir := t.TempDir()
	kubeconfig, err := clientcmd.LoadFromFile(f.server.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	for _, context := range kubeconfig.Contexts {
		context.Namespace = f.ns
	}
	if err := clientcmd.WriteToFile(*kubeconfig, filepath.Join(dir, "kubeconfig")); err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile("(?s)```go\n(package main\n.*?)```").FindSubmatch(readme)
	if program == nil {
		t.Fatal("the README has no program")
	}
	source := strings.NewReplacer(`":8080"`, `os.Getenv("ADDRESS")`, `	"os/signal"`,
		"\t\"os\"\n\t\"os/signal\"").Replace(string(program[1]))
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "program"),
		filepath.Join(dir, "main.go")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	type replica struct {
		cmd     *exec.Cmd
		address string
		log     syncBuffer
	}
	start := func() *replica {
		r := &replica{cmd: exec.Command(filepath.Join(dir, "program")), address: freeAddress(t)}
		r.cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(dir, "kubeconfig"), "ADDRESS="+r.address)
		r.cmd.Stderr = io.MultiWriter(&r.log, &f.log)
		if err := r.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.cmd.Process.Kill() })
		return r
	}
	get := func(r *replica, path string) (int, string) {
		response, err := http.Get("http://" + r.address + path)
		if err != nil {
			return 0, ""
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		return response.StatusCode, string(body)
	}
	defer http.DefaultClient.CloseIdleConnections()
	leads := func(r *replica) bool {
		var state struct{ Leases []leasehold.LeaseStatus }
		_, body := get(r, "/leases")
		return json.Unmarshal([]byte(body), &state) == nil && len(state.Leases) == 1 && state.Leases[0].Leading
	}
	healthy := func(r *replica) bool {
		ready, _ := get(r, "/readyz")
		live, _ := get(r, "/healthz")
		return ready == http.StatusOK && live == http.StatusOK
	}

	a := start()
	f.await("the first replica leads", func() bool { return leads(a) })
	b := start()
	f.await("the standby is healthy and ready", func() bool { return healthy(b) })
	if !healthy(a) || leads(b) {
		t.Errorf("the leader is healthy: %v; the standby leads too: %v", healthy(a), leads(b))
	}

	a.cmd.Process.Signal(syscall.SIGTERM)
	exited := make(chan error, 1)
	go func() { exited <- a.cmd.Wait() }()
	select {
	case err := <-exited:
		if err != nil {
			t.Errorf("exited with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("still running a minute after SIGTERM")
	}
	stopped, released := strings.Index(a.log.String(), "stopped: terminated signal received"),
		strings.Index(a.log.String(), "lease released")
	if stopped < 0 || released < stopped {
		t.Errorf("at SIGTERM the work must stop, and then the lease be released:\n%s", a.log.String())
	}
	f.await("the standby leads", func() bool { return leads(b) })

	b.cmd.Process.Signal(syscall.SIGTERM)
	if err := b.cmd.Wait(); err != nil {
		t.Errorf("exited with %v", err)
	}
}
