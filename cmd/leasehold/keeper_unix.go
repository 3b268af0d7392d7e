//go:build unix

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/leasehold-go/leasehold"
)

// A keeper is a process between spread and the command of one key, which it runs as "leasehold run" does, with a
// watchdog of its own: the descendants of each command have to be told from those of others. It reads lines from
// spread:
//
//	trust UNTIL  the key is this process's until then by clock(), at least
//	end          end the command in order
//	lost         another may own the key: kill the command
//
// At the end of its input, when spread is gone, it kills the command too.
type keeper struct {
	cmd     *exec.Cmd
	control *os.File
	until   time.Duration // what was sent last
	done    chan struct{} // closed when the keeper, its watchdog and the command's processes have ended
}

const (
	keeperArg = "__keeper"
	// The files of a keeper: from spread, and one that it and its watchdog only keep open.
	controlFile, aliveFile = 3, 4
)

// isKeeper reports whether this process is a keeper.
func isKeeper() bool { return len(os.Args) > 1 && os.Args[1] == keeperArg }

// spread runs the command for each key of this process's share.
func (t *tool) spread(o *spreadOptions, group string, keys, argv []string) error {
	opts, err := o.options(t, group)
	if err != nil {
		return err
	}
	path, err := lookPath(argv[0])
	if err != nil {
		return err
	}
	ctx, cancel := interruptible()
	defer cancel()
	sp := &spreader{spreadOptions: o, tool: t, group: group, path: path, argv: argv}
	err = leasehold.Spread(ctx, leasehold.Keys(keys...), sp.work, opts...)
	var asked stopped
	if errors.As(err, &asked) {
		return nil
	}
	return err
}

// A spreader runs the commands of spread.
type spreader struct {
	*spreadOptions
	tool        *tool
	group, path string
	argv        []string
}

// work runs the command of one key, until all its processes have ended.
func (sp *spreader) work(s leasehold.Session, key string) error {
	k, err := sp.start(s, key)
	if err != nil {
		return err
	}
	defer k.control.Close()
	tick := time.NewTicker(look)
	defer tick.Stop()
	over := s.Done()
	for {
		k.report(s)
		select {
		case <-k.done:
			return k.result()
		case <-over:
			over = nil
			if s.ValidFor() > 0 {
				k.say("end")
			}
		case <-tick.C:
		}
	}
}

// result returns what became of the command.
func (k *keeper) result() error {
	if k.cmd.ProcessState.Success() {
		return nil
	}
	return fmt.Errorf("the command failed: %s", k.cmd.ProcessState)
}

// start starts the keeper of a key.
func (sp *spreader) start(s leasehold.Session, key string) (*keeper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	read, control, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	alive, kept, err := os.Pipe()
	if err != nil {
		control.Close()
		return nil, err
	}
	defer kept.Close()
	args := []string{keeperArg, key, strconv.FormatUint(s.FencingToken(), 10), sp.stopTimeout.String(),
		sp.gracePeriod.String(), sp.tool.logLevel.String(), sp.tool.logFormat, sp.path}
	k := &keeper{cmd: exec.Command(self, append(args, sp.argv...)...), control: control, done: make(chan struct{})}
	k.cmd.Env = append(environ(s, "LEASEHOLD_KEY="+key), "LEASEHOLD_GROUP="+sp.group)
	k.cmd.Stdout, k.cmd.Stderr = os.Stdout, os.Stderr
	k.cmd.ExtraFiles = []*os.File{read, kept}
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // out of reach of a terminal's signals
	if err := k.cmd.Start(); err != nil {
		control.Close()
		alive.Close()
		return nil, fmt.Errorf("start the keeper of a command: %w", err)
	}
	go func() {
		defer close(k.done)
		defer alive.Close()
		k.cmd.Wait()
		io.Copy(io.Discard, alive) // until its watchdog has ended too
	}()
	return k, nil
}

// report tells the keeper how long the key is certainly this process's.
func (k *keeper) report(s leasehold.Session) {
	now := clock() // first: what is sent is never too late
	left := s.ValidFor()
	switch until := now + left; {
	case left <= 0 && clock() < k.until:
		k.until = 0
		k.say("lost")
	case left > 0 && (until > k.until+time.Millisecond || until < k.until-time.Millisecond):
		k.until = until
		k.say(fmt.Sprintf("trust %d", until))
	}
}

// say sends a line. A keeper that does not get it is gone, or ends its command when the time is over.
func (k *keeper) say(line string) { fmt.Fprintln(k.control, line) }

// keeperMain is the main function of a keeper's process.
func keeperMain() {
	syscall.CloseOnExec(controlFile)
	syscall.CloseOnExec(aliveFile)
	t := &tool{name: "leasehold", out: os.Stdout, err: os.Stderr}
	t.logs = newLogWriter(t.err)
	code, err := t.keep(os.Args[2:])
	if err != nil {
		fmt.Fprintln(t.logs, "error:", err)
	}
	t.logs.flush()
	os.Exit(code)
}

// keep runs a command as a keeper, and returns its exit code.
func (t *tool) keep(args []string) (code int, err error) {
	if len(args) < 8 {
		return exitUsage, errors.New("a keeper is started by spread alone")
	}
	var s stopping
	token, err := strconv.ParseUint(args[1], 10, 64)
	for i, to := range []*time.Duration{&s.stopTimeout, &s.gracePeriod} {
		var bad error
		*to, bad = time.ParseDuration(args[2+i])
		err = errors.Join(err, bad)
	}
	t.logFormat = args[5]
	if err = errors.Join(err, t.logLevel.UnmarshalText([]byte(args[4])), t.openLog()); err != nil {
		return exitUsage, err
	}
	t.log = t.log.With("key", args[0])
	alive := os.NewFile(aliveFile, "alive")
	defer alive.Close()
	host, err := newHost(t.log, alive)
	if err != nil {
		return exitRunFailed, err
	}
	defer host.close()
	told := &told{news: make(chan struct{}), done: make(chan struct{})}
	go told.read(os.NewFile(controlFile, "control"))
	<-told.news // its first line
	r := &runner{runOptions: &runOptions{stopping: s}, tool: t, path: args[6], argv: args[7:], host: host}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, markName+"=") })
	end := r.supervise(told, append(env, host.watchdog.mark), token)
	return end.code, end.err
}

// A told is the tenure of a command as spread tells it.
type told struct {
	news chan struct{} // closed when the first line came
	done chan struct{} // closed when the command is to end

	mu    sync.Mutex // protects following
	until time.Duration
	err   error // why it is to end
	lost  bool  // at once
}

func (t *told) read(from io.Reader) {
	first, ending := sync.OnceFunc(func() { close(t.news) }), sync.OnceFunc(func() { close(t.done) })
	defer first()
	defer ending()
	for lines := bufio.NewScanner(from); lines.Scan(); first() {
		line := lines.Bytes()
		t.mu.Lock()
		until, trusted := bytes.CutPrefix(line, []byte("trust "))
		switch {
		case trusted:
			n, _ := strconv.ParseInt(string(until), 10, 64) // 0 where it cannot be read, which is over
			t.until = time.Duration(n)
		case string(line) == "end":
			t.err = errAskedBack
		default:
			t.lost = true
		}
		over := t.err != nil || t.lost
		t.mu.Unlock()
		if over {
			ending()
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lost = true
}

func (t *told) ValidFor() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lost {
		return 0
	}
	return max(t.until-clock(), 0)
}

func (t *told) Done() <-chan struct{} { return t.done }

func (t *told) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.lost:
		return fmt.Errorf("%w: the key may be another process's", leasehold.ErrLost)
	case t.until <= clock():
		return fmt.Errorf("%w: not renewed in time", leasehold.ErrLost)
	}
	return t.err
}
