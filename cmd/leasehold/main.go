package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
)

// The exit codes of the tool; doc.go explains them.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitLost        = 123
	exitNotAcquired = 124
	exitRunFailed   = 125
	exitNotRunnable = 126
	exitNotFound    = 127
	exitSignal      = 128
)

func init() {
	// The command of run dies with the thread that started it (see start). The main thread lasts as long as the
	// process.
	runtime.LockOSThread()
}

func main() {
	if isWatchdog() {
		watchdogMain()
		return
	}
	if isKeeper() {
		keeperMain()
		return
	}
	args := os.Args[1:]
	if calledForCompletion() {
		args = append([]string{completeArg}, args...)
	}
	os.Exit((&tool{
		name: filepath.Base(os.Args[0]),
		in:   os.Stdin,
		out:  os.Stdout,
		err:  os.Stderr,
	}).main(args))
}

// A tool is one call of leasehold: its input and output, and the values of the common flags.
type tool struct {
	name     string
	in       io.Reader
	out, err io.Writer

	logs      *logWriter // to err, without blocking
	cluster   cluster
	logLevel  slog.Level
	logFormat string
	log       *slog.Logger
}

// A command is one of leasehold's.
type command struct {
	name  string
	args  string // as usage shows them
	short string // one line
	long  string
	// examples are shown indented, with the name of the tool in place of "leasehold".
	examples string
	// offline commands need no API server, and have no flags to find one.
	offline bool
	flags   func(*pflag.FlagSet)
	// run is called with the arguments that are no flags; dash is the number of those before "--", -1 without one.
	run func(t *tool, args []string, dash int) error
}

// commands returns the commands in the order in which help shows them, with their flags at the defaults.
func commands() []*command {
	return []*command{
		runCommand(), spreadCommand(), getCommand(), watchCommand(), claimCommand(), releaseCommand(),
		handoverCommand(),
		createCommand(), sharesCommand(), explainCommand(), reportCommand(), completionCommand(),
	}
}

// main runs the command that args name and returns the exit code.
func (t *tool) main(args []string) int {
	t.name = strings.Replace(strings.TrimSuffix(t.name, ".exe"), "kubectl-", "kubectl ", 1)
	t.logs = newLogWriter(t.err)
	err := t.dispatch(args)
	var exit *exitError
	code := 0
	if err != nil {
		code = exitFailed
	}
	if errors.As(err, &exit) {
		code, err = exit.code, exit.err
	}
	switch {
	case err == nil || errors.Is(err, pflag.ErrHelp):
	case code == 0: // --held-exit-code=0
		fmt.Fprintln(t.logs, byFlags(err.Error()))
	default:
		fmt.Fprintln(t.logs, "error:", byFlags(err.Error()))
	}
	t.logs.flush()
	return code
}

func (t *tool) dispatch(args []string) error {
	if len(args) > 0 && args[0] == completeArg {
		return t.complete(args[1:])
	}
	args = t.commandFirst(args)
	if len(args) == 0 {
		t.usage(t.err)
		return exitWith(exitUsage, nil)
	}
	switch args[0] {
	case "-h", "--help", "help":
		if len(args) > 1 && !strings.HasPrefix(args[1], "-") {
			c := find(args[1])
			if c == nil {
				return t.noCommand(args[1])
			}
			t.help(t.out, c, t.flagSet(c))
			return nil
		}
		t.usage(t.out)
		return nil
	case "version", "--version":
		return t.version()
	}
	c := find(args[0])
	if c == nil {
		return t.noCommand(args[0])
	}
	flags := t.flagSet(c)
	err := flags.Parse(args[1:])
	if errors.Is(err, pflag.ErrHelp) {
		t.help(t.out, c, flags)
		return nil
	}
	if err == nil {
		err = t.openLog()
	}
	if err != nil {
		err = usageError{fmt.Errorf("%w: see %q", err, t.name+" "+c.name+" --help")}
	} else {
		err = c.run(t, flags.Args(), flags.ArgsLenAtDash())
	}
	return c.exit(err)
}

func (t *tool) noCommand(name string) error {
	return exitWith(exitUsage, fmt.Errorf("unknown command %q: see %q", name, t.name+" help"))
}

// commandFirst returns args with the common flags that come before the command moved behind it, as in kubectl leasehold
// -n web get.
func (t *tool) commandFirst(args []string) []string {
	if len(args) == 0 || !strings.HasPrefix(args[0], "-") {
		return args
	}
	var discarded tool
	flags := discarded.commonFlags()
	flags.SetInterspersed(false)
	if err := flags.Parse(args); err != nil || flags.NArg() == 0 {
		return args
	}
	leading := args[:len(args)-flags.NArg()]
	return slices.Concat(flags.Args()[:1], leading, flags.Args()[1:])
}

// exit returns err with the exit code of its kind, unless it has one.
func (c *command) exit(err error) error {
	var exit *exitError
	var usage usageError
	switch {
	case err == nil || errors.As(err, &exit):
		return err
	case c.name == "run" || c.name == "spread":
		return exitWith(exitRunFailed, err)
	case errors.As(err, &usage):
		return exitWith(exitUsage, err)
	}
	return exitWith(exitFailed, err)
}

func find(name string) *command {
	for _, c := range commands() {
		if c.name == name {
			return c
		}
	}
	return nil
}

// flagSet returns the flags of c, which set fields of c and t.
func (t *tool) flagSet(c *command) *pflag.FlagSet {
	flags := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	flags.SetOutput(io.Discard) // main prints the error
	flags.SortFlags = false
	if c.flags != nil {
		c.flags(flags)
	}
	if !c.offline {
		flags.AddFlagSet(t.commonFlags())
	}
	return flags
}

func (t *tool) commonFlags() *pflag.FlagSet {
	flags := pflag.NewFlagSet("common", pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	t.cluster.flags(flags)
	flags.TextVar(&t.logLevel, "log-level", slog.LevelInfo, "lowest `level` to log: debug, info, warn or error")
	flags.StringVar(&t.logFormat, "log-format", "text", "`format` of the log, on standard error: text or json")
	return flags
}

// openLog makes t.log a logger that writes to t.logs.
func (t *tool) openLog() error {
	handler, err := t.logHandler(t.logs)
	if err != nil {
		return err
	}
	t.log = slog.New(handler)
	t.logs.lost = func(lines int) []byte {
		var line bytes.Buffer
		handler, _ := t.logHandler(&line) // the format is known by now
		slog.New(handler).Error("log lines dropped: standard error was blocked", "lines", lines)
		return line.Bytes()
	}
	klog.SetSlogLogger(t.log) // client-go's own messages
	return nil
}

func (t *tool) logHandler(w io.Writer) (slog.Handler, error) {
	options := &slog.HandlerOptions{Level: t.logLevel, ReplaceAttr: errorByFlags}
	switch t.logFormat {
	case "text", "":
		return slog.NewTextHandler(w, options), nil
	case "json":
		return slog.NewJSONHandler(w, options), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", t.logFormat)
}

// interruptible returns a context that ends when the tool is asked to stop, with a stopped as its cause. A second
// request ends the process.
func interruptible() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case sig := <-signals:
			signal.Stop(signals)
			cancel(stopped{sig})
		case <-ctx.Done():
			signal.Stop(signals)
		}
	}()
	return ctx, func() { cancel(nil) }
}

// An exitError ends the tool with a code of its own. Without an error nothing is printed.
type exitError struct {
	code int
	err  error
}

func exitWith(code int, err error) error { return &exitError{code, err} }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d: %v", e.code, e.err) }
func (e *exitError) Unwrap() error { return e.err }

// A usageError is a mistake in the arguments, which the help explains.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// oneLease returns the name of the lease that is the only argument.
func oneLease(args []string) (string, error) {
	switch len(args) {
	case 0:
		return "", usagef("missing LEASE: its name is required")
	case 1:
		return leaseName(args[0])
	}
	return "", usagef("want one lease, not %d: %s", len(args), strings.Join(args, " "))
}

// leaseResources are the names by which kubectl knows the resource.
var leaseResources = []string{
	"lease", "lease.coordination.k8s.io", "lease.v1.coordination.k8s.io",
	"leases", "leases.coordination.k8s.io", "leases.v1.coordination.k8s.io",
}

// leaseName returns the name in an argument that may be of the form lease/NAME.
func leaseName(arg string) (string, error) {
	kind, name, found := strings.Cut(arg, "/")
	switch {
	case arg == "":
		return "", usagef("LEASE is empty: its name is required")
	case !found:
		return arg, nil
	case !slices.Contains(leaseResources, strings.ToLower(kind)):
		return "", usagef("%q: want NAME or lease/NAME; the namespace is given by --namespace", arg)
	case name == "":
		return "", usagef("%q: missing the name after lease/", arg)
	}
	return name, nil
}
