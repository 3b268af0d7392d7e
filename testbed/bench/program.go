package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/leasehold-go/leasehold/testbed/bench/programs/config"
)

// programs are built from the folder of that name, in the order of the fields of a row.
var programs = []string{"client-go", "leasehold", "rest"}

// program measures programs that lead a lease and do nothing else, without a clientset: the size of the executable,
// as go build makes it, and the memory that is resident once it has led for some seconds. The floor has client-go's
// transport alone.
func (b *bench) program() error {
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var sizes, resident []*summary
	for _, name := range programs {
		file := filepath.Join(dir, name)
		if err := b.build(name, file); err != nil {
			return err
		}
		stat, err := os.Stat(file)
		if err != nil {
			return err
		}
		memory, err := b.resident(file)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		sizes, resident = append(sizes, summarize(float64(stat.Size()))), append(resident, summarize(float64(memory)))
	}
	for _, r := range []struct {
		what  string
		of    []*summary
		limit float64 // MB
	}{{"a program without a clientset: size", sizes, 20},
		{"a program without a clientset: resident memory", resident, 16}} {
		measured := row{
			What: r.what, Unit: "B", ClientGo: r.of[0], Leasehold: r.of[1], Floor: r.of[2],
			Goal: fmt.Sprintf("<= %g MB", r.limit),
		}
		b.report.add(measured, func() bool { return measured.Leasehold.P50 <= r.limit*1e6 })
	}
	return nil
}

// build builds one of the programs into a file.
func (b *bench) build(name, file string) error {
	cmd := exec.CommandContext(b.ctx, "go", "build", "-o", file,
		"github.com/leasehold-go/leasehold/testbed/bench/programs/"+name)
	if _, source, _, ok := runtime.Caller(0); ok && filepath.IsAbs(source) { // not so with -trimpath
		cmd.Dir = filepath.Dir(source)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("build %s: %w\n%s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

// resident starts a program and returns how many bytes of its memory are resident some seconds after it has begun to
// lead.
func (b *bench) resident(file string) (int64, error) {
	server := b.server.Config()
	input, err := json.Marshal(config.Config{
		Host: server.Host, Lease: b.lease("weighed"), Authority: server.CAData, Cert: server.CertData,
		Key: server.KeyData,
	})
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(b.ctx, file)
	var said bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Kill() // it does not end by itself
		_ = cmd.Wait()
	}()
	ready := make(chan bool, 1)
	go func() {
		lines := bufio.NewScanner(out)
		ready <- lines.Scan() && lines.Text() == config.Ready
	}()
	led, err := receive(b, "line "+config.Ready, ready)
	if err != nil {
		return 0, err
	}
	if !led {
		_ = cmd.Wait()
		return 0, fmt.Errorf("it did not say %q but %q", config.Ready, said.String())
	}
	if err := b.sleep(b.weighing); err != nil {
		return 0, err
	}
	return residentBytes(cmd.Process.Pid)
}
