package controlplane_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	coordinationv1 "k8s.io/api/coordination/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	rbacv1client "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

// orphanEnv makes TestMain start a control plane, print where it is, pause it and wait to be killed.
const orphanEnv = "CONTROLPLANE_TEST_ORPHAN"

func TestMain(m *testing.M) {
	if os.Getenv(orphanEnv) != "" {
		orphan()
	}
	goleak.VerifyTestMain(controlplane.StopAfter(m))
}

func TestShared(t *testing.T) {
	s := controlplane.ForTest(t)
	ns := s.Namespace(t)
	if other := s.Namespace(t); ns == other {
		t.Errorf("two namespaces called %s", ns)
	}
	create(t, s.Config(), ns, "a")
	get(t, s.Config(), ns, "a")
	if again := controlplane.ForTest(t); again != s {
		t.Error("a second shared control plane")
	}
}

// TestData checks that a Lease survives everything that can happen to the process.
func TestData(t *testing.T) {
	t.Parallel()
	s := start(t, controlplane.Options{NoFsync: true})
	create(t, s.Config(), "default", "a")
	user := s.UserConfig("ann", "system:masters") // outlives restarts

	for _, tt := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"restart", s.Restart},
		{"kill and restart", func(ctx context.Context) error { return errors.Join(s.Kill(), s.Restart(ctx)) }},
		{"pause and restart", func(ctx context.Context) error { return errors.Join(s.Pause(), s.Restart(ctx)) }},
		{"pause, kill and restart", func(ctx context.Context) error {
			return errors.Join(s.Pause(), s.Kill(), s.Restart(ctx))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := s.Pid()
			if err := tt.do(t.Context()); err != nil {
				t.Fatal(err)
			}
			if pid := s.Pid(); pid == before || pid == 0 {
				t.Errorf("process %d, was %d before", pid, before)
			}
			for _, cfg := range []*rest.Config{s.Config(), user} {
				get(t, cfg, "default", "a")
			}
		})
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	s := start(t, controlplane.Options{NoFsync: true})
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	cfg := s.Config()
	cfg.Timeout = 200 * time.Millisecond
	if _, err := leases(t, cfg, "default").Get(t.Context(), "a", metav1.GetOptions{}); err == nil ||
		apierrors.IsNotFound(err) {
		t.Errorf("a paused API server answered: %v", err)
	}
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	create(t, s.Config(), "default", "a")
}

func TestKill(t *testing.T) {
	t.Parallel()
	s := start(t, controlplane.Options{NoFsync: true})
	pid := s.Pid()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	wantGone(t, pid)
	if got := s.Pid(); got != 0 {
		t.Errorf("process %d after Kill", got)
	}
	for name, f := range map[string]func() error{"Kill": s.Kill, "Pause": s.Pause, "Resume": s.Resume} {
		if err := f(); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("%s without a process: %v, want os.ErrProcessDone", name, err)
		}
	}
}

func TestStop(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(*controlplane.Server) error
	}{
		{"running", func(s *controlplane.Server) error { return nil }},
		{"killed", (*controlplane.Server).Kill},
		{"paused", (*controlplane.Server).Pause},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, controlplane.Options{NoFsync: true})
			pid, dir := s.Pid(), filepath.Dir(s.Kubeconfig())
			if err := tt.before(s); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := s.Stop(); err != nil {
					t.Fatal(err)
				}
			}
			wantGone(t, pid)
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("directory %s after Stop: %v", dir, err)
			}
			if err := s.Restart(t.Context()); err == nil {
				t.Error("restarted after Stop")
			}
		})
	}
}

func TestDir(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	s := start(t, controlplane.Options{Dir: dir})
	create(t, s.Config(), "default", "a")
	kubeconfig := s.Kubeconfig()

	if _, err := controlplane.Start(t.Context(), controlplane.Options{Dir: dir}); err == nil ||
		!strings.Contains(err.Error(), "another control plane") {
		t.Errorf("second start in the same directory: %v", err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	start(t, controlplane.Options{Dir: dir})
	get(t, cfg, "default", "a")
}

func TestUser(t *testing.T) {
	s := controlplane.ForTest(t)
	ns := s.Namespace(t)
	path, err := s.UserKubeconfig("team:ann")
	if err != nil {
		t.Fatal(err)
	}
	if paths := filepath.SplitList(path); len(paths) != 1 {
		t.Errorf("$KUBECONFIG would be split: %q", paths)
	}
	ann, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	ben := s.UserConfig("ben", "readers")
	for _, cfg := range []*rest.Config{ann, ben} {
		if _, err := leases(t, cfg, ns).Get(t.Context(), "a", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("without a Role: %v, want 403", err)
		}
	}

	rbac, err := rbacv1client.NewForConfigAndClient(s.Config(), httpClient(t, s.Config()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rbac.Roles(ns).Create(t.Context(), &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "reader"},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"},
			Verbs: []string{"get"}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := rbac.RoleBindings(ns).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "readers"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "reader"},
		Subjects: []rbacv1.Subject{
			{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "team:ann"},
			{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "readers"},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []*rest.Config{ann, ben} {
		// The authorizer learns of the binding by a watch.
		await(t, "the Role to count", func() bool {
			_, err := leases(t, cfg, ns).Get(t.Context(), "a", metav1.GetOptions{})
			return apierrors.IsNotFound(err)
		})
	}
}

func TestStartFails(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: needs a real API server")
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		options controlplane.Options
		want    string
	}{
		{"a file for a directory", controlplane.Options{Dir: file}, "not a directory"},
		{"somebody else's directory", controlplane.Options{Dir: dir}, "holds file"},
		{"a port in use", controlplane.Options{Port: taken.Addr().(*net.TCPAddr).Port}, "address already in use"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := controlplane.Start(t.Context(), tt.options); err == nil ||
				!strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestOrphan kills a program whose control plane is paused and cannot react.
func TestOrphan(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: needs a real API server")
	}
	program := exec.Command(os.Args[0])
	program.Env = append(os.Environ(), orphanEnv+"=1")
	stdout, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 4096)
	n, err := stdout.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = program.Wait()

	pid, dir, _ := strings.Cut(strings.TrimSpace(string(line[:n])), " ")
	id, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the process and its directory to go", func() bool {
		_, err := os.Stat(dir)
		return !alive(id) && errors.Is(err, fs.ErrNotExist)
	})
}

func orphan() {
	s, err := controlplane.Start(context.Background(), controlplane.Options{NoFsync: true})
	if err != nil {
		panic(err)
	}
	if err := s.Pause(); err != nil {
		panic(err)
	}
	os.Stdout.WriteString(strconv.Itoa(s.Pid()) + " " + filepath.Dir(s.Kubeconfig()) + "\n")
	select {}
}

func start(t *testing.T, o controlplane.Options) *controlplane.Server {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: needs a real API server")
	}
	s, err := controlplane.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func httpClient(t *testing.T, cfg *rest.Config) *http.Client {
	t.Helper()
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	return client
}

func leases(t *testing.T, cfg *rest.Config, namespace string) coordinationv1client.LeaseInterface {
	t.Helper()
	client, err := coordinationv1client.NewForConfigAndClient(cfg, httpClient(t, cfg))
	if err != nil {
		t.Fatal(err)
	}
	return client.Leases(namespace)
}

func create(t *testing.T, cfg *rest.Config, namespace, name string) {
	t.Helper()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := leases(t, cfg, namespace).Create(t.Context(), lease, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, cfg *rest.Config, namespace, name string) {
	t.Helper()
	if _, err := leases(t, cfg, namespace).Get(t.Context(), name, metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

// await gives a busy machine a minute.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still waiting for ", what)
		}
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func wantGone(t *testing.T, pid int) {
	t.Helper()
	if alive(pid) {
		t.Errorf("process %d is still there", pid)
	}
}
