// Package controlplane runs a real Kubernetes API server, with etcd, for tests and measurements. The server is a
// process of its own, so that a test can kill it, stop it for a while and start it again on the same data, and so that
// the programs around it, and their race detector, need not contain Kubernetes.
//
// The process is the command testbed/cmd/controlplane, which the go command builds when it is first needed: minutes
// with an empty build cache, half a second with a full one. It listens on the loopback interface only and ends with the
// program that started it, however that ends.
//
// The API is complete, RBAC is enforced and priority and fairness is on. There are no controllers: nothing is garbage
// collected, and a deleted namespace stays.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold/testbed/internal/datadir"
)

// Options of Start. The zero value is ready.
type Options struct {
	// Dir keeps data, keys and log. A control plane that ran there before continues with its data, its address and its
	// users. Empty is a new temporary directory, removed by Stop.
	Dir string
	// Port on 127.0.0.1. 0 is that of last time in Dir, else a free one.
	Port int
	// NoFsync lets etcd answer a write before it is on the disk. Data survive Kill all the same, but not a crash of the
	// machine.
	NoFsync bool
	// CoordinatedLeaderElection turns that feature on (KEP-4355), without which Leases keep no strategy.
	CoordinatedLeaderElection bool
	// FeatureGates turns others on, or off, by name.
	FeatureGates map[string]bool
}

// Server is a control plane. Its methods are safe for concurrent use; one that changes the process waits for another
// that does.
type Server struct {
	binary  string
	args    []string
	tempDir string // for Stop to remove; empty if Dir was given
	dir     *datadir.Dir
	admin   *rest.Config

	mu      sync.Mutex
	process *process // the last one
	stopped bool
}

// Start returns when the API server is ready: it answers, RBAC's roles and the namespace "default" exist. ctx ends the
// wait, not the server. If the server does not start, the error has the end of its log.
func Start(ctx context.Context, o Options) (_ *Server, err error) {
	s := new(Server)
	if s.binary, err = build(ctx); err != nil {
		return nil, err
	}
	path := o.Dir
	if path == "" {
		if path, err = os.MkdirTemp("", "controlplane-"); err != nil {
			return nil, err
		}
		s.tempDir = path
	}
	s.args = []string{
		"-dir=" + path, "-port=" + strconv.Itoa(o.Port), "-fsync=" + strconv.FormatBool(!o.NoFsync),
		"-coordinated=" + strconv.FormatBool(o.CoordinatedLeaderElection), "-gates=" + gates(o.FeatureGates),
		"-until-eof", "-discard=" + strconv.FormatBool(s.tempDir != ""),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	if s.process, err = start(ctx, s.binary, s.args); err != nil {
		return nil, err
	}
	if s.dir, err = datadir.Open(path); err != nil {
		return nil, err
	}
	if s.admin, err = s.dir.Config(); err != nil {
		return nil, err
	}
	return s, nil
}

// gates returns feature gates as a flag.
func gates(on map[string]bool) string {
	var parts []string
	for name, value := range on {
		parts = append(parts, name+"="+strconv.FormatBool(value))
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// Config returns a new configuration for a client with all rights.
func (s *Server) Config() *rest.Config { return rest.CopyConfig(s.admin) }

// Kubeconfig returns the path of a kubeconfig with all rights.
func (s *Server) Kubeconfig() string { return s.dir.Path(datadir.Kubeconfig) }

// UserConfig returns a new configuration for a client that is the named user, in the groups and in
// system:authenticated. Any name is valid; without a RoleBinding the user has hardly any rights. Service accounts have
// names like system:serviceaccount:NAMESPACE:NAME.
func (s *Server) UserConfig(user string, groups ...string) *rest.Config {
	cfg, err := s.dir.UserConfig(s.admin.Host, user, groups...)
	if err != nil {
		panic(err) // the authority signs whatever it is given
	}
	return cfg
}

// UserKubeconfig writes the UserConfig of a user to a file in the control plane's directory and returns its path. There
// is one such file per user. It fits $KUBECONFIG, a list: no separator is in its name.
func (s *Server) UserKubeconfig(user string, groups ...string) (string, error) {
	file := url.QueryEscape(user) + ".kubeconfig" // colons too
	return s.dir.Path(file), s.dir.WriteKubeconfig(file, s.UserConfig(user, groups...))
}

// Log returns the path of the log of the API server and etcd.
func (s *Server) Log() string { return s.dir.Path(datadir.Log) }

// Pid returns the process ID, 0 after Kill, after Stop and when the process ended by itself.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.process.running() {
		return 0
	}
	return s.process.pid()
}

// Kill ends the process with SIGKILL: connections break and nothing is cleaned up. It returns when the process has
// ended.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.process.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-s.process.done
	return nil
}

// Pause stops the process with SIGSTOP: connections stay open without answers. When it returns, no thread runs.
func (s *Server) Pause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.process.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return s.process.awaitStopped()
}

// Resume continues a paused process.
func (s *Server) Resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.signal(syscall.SIGCONT)
}

// Restart starts a process on the same data at the same address, after it has stopped the present one if there is one.
// It returns when the API server is ready, as Start does.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return errors.New("control plane was stopped for good")
	}
	if err := s.process.stop(); err != nil {
		return err
	}
	p, err := start(ctx, s.binary, s.args)
	if err != nil {
		return err
	}
	s.process = p
	return nil
}

// Stop ends the process, a paused one too, and removes the directory if it was a temporary one. It gives the API server
// some seconds to finish its requests; if it has to kill it then, it returns an error. Later calls do nothing.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil
	}
	s.stopped = true
	err := s.process.stop()
	if s.tempDir != "" {
		err = errors.Join(err, os.RemoveAll(s.tempDir))
	}
	if err != nil {
		return fmt.Errorf("stop control plane: %w", err)
	}
	return nil
}
