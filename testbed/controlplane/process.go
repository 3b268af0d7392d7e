package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/leasehold-go/leasehold/testbed/internal/child"
)

// command is declared as a tool in go.mod, so that the go command keeps the executable in its build cache.
const command = "github.com/leasehold-go/leasehold/testbed/cmd/controlplane"

// stopTimeout is above the time that the command itself grants the API server.
const stopTimeout = 15 * time.Second

// build returns the path of the command's executable, up to date. Processes that build at the same time take turns, so
// that Kubernetes is compiled once.
func build(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "-n", command)
	if _, source, _, ok := runtime.Caller(0); ok && filepath.IsAbs(source) { // not so with -trimpath
		cmd.Dir = filepath.Dir(source)
		f, err := os.Open(source)
		if err != nil {
			return "", err
		}
		defer f.Close()
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			return "", fmt.Errorf("lock %s: %w", source, err)
		}
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build control plane: %w\n%s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(bytes.TrimSpace(out)), nil
}

// process is a run of the command.
type process struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer  // to be read once done
	ready  chan struct{} // closed when the command reports it
	done   chan struct{} // closed when the process has ended
	err    error         // why, once done
}

// start returns when the process is ready; if it is not, or ctx ends first, there is no process when it returns.
func start(ctx context.Context, binary string, args []string) (*process, error) {
	p := &process{cmd: exec.Command(binary, args...), ready: make(chan struct{}), done: make(chan struct{})}
	p.cmd.Stdout = &firstWrite{done: p.ready}
	p.cmd.Stderr = &p.stderr
	// A paused one is woken by the death of this process, to see the end of its standard input.
	if err := child.Start(p.cmd, syscall.SIGCONT, func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}); err != nil {
		return nil, fmt.Errorf("start control plane: %w", err)
	}
	select {
	case <-p.ready:
		return p, nil
	case <-p.done:
		return nil, fmt.Errorf("start control plane: %w\n%s", p.err, bytes.TrimSpace(p.stderr.Bytes()))
	case <-ctx.Done():
		_ = p.signal(syscall.SIGKILL)
		<-p.done
		return nil, fmt.Errorf("start control plane: %w", context.Cause(ctx))
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// signal returns os.ErrProcessDone when the process has ended.
func (p *process) signal(sig os.Signal) error {
	if !p.running() {
		return os.ErrProcessDone
	}
	return p.cmd.Process.Signal(sig)
}

// stop ends the process if it runs; when it returns there is none, whatever the error.
func (p *process) stop() error {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGCONT} {
		if err := p.signal(sig); errors.Is(err, os.ErrProcessDone) {
			return nil
		} else if err != nil {
			return err
		}
	}
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%w\n%s", p.err, bytes.TrimSpace(p.stderr.Bytes()))
		}
		return nil
	case <-time.After(stopTimeout):
		_ = p.signal(syscall.SIGKILL)
		<-p.done
		return fmt.Errorf("still running after %v, killed", stopTimeout)
	}
}

// firstWrite closes done at the first write and drops what is written.
type firstWrite struct {
	once sync.Once
	done chan<- struct{}
}

func (w *firstWrite) Write(b []byte) (int, error) {
	w.once.Do(func() { close(w.done) })
	return len(b), nil
}
