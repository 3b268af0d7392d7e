package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// A record is one line of a candidate's journal. Times are by CLOCK_BOOTTIME, which is the same for all processes.
type record struct {
	Session string `json:"s"`
	What    string `json:"k"`

	// The session was live at some instant between these two.
	Before time.Duration `json:"b,omitempty"`
	After  time.Duration `json:"a,omitempty"`

	// After that check, the body wrote to the store between these two.
	Sent    time.Duration `json:"w,omitempty"`
	Done    time.Duration `json:"d,omitempty"`
	Refused bool          `json:"x,omitempty"` // by the fenced store

	Of   *beginning `json:"of,omitempty"`   // at the beginning
	Lost bool       `json:"lost,omitempty"` // at the end
	Why  string     `json:"why,omitempty"`  // at the end
}

// A beginning describes a session and its candidate.
type beginning struct {
	Lease     string
	Candidate string // its name, which it keeps across restarts
	Kind      kind
	Identity  string
	PID       int
	Token     uint64        `json:",omitempty"` // 0 for client-go's
	Deadline  time.Duration // for how long the holder trusts its lease after a renewal
	Since     time.Duration // the earliest start of the campaign for it
	Started   time.Duration // of its process
}

// Kinds of records.
const (
	begin = "begin" // the body of a session begins
	look  = "look"  // the session was live and its body wrote
	end   = "end"   // the body returns after the time in After
)

// A journal is the file of one process.
type journal struct {
	mu   sync.Mutex
	file *os.File
}

// write returns once the record survives the end of the process.
func (j *journal) write(r record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	_, err = j.file.Write(append(line, '\n'))
	return err
}

// readLines calls f for the JSON value in each line of a file. It ignores half a line at the end, which a killed
// process can leave.
func readLines[T any](file string, f func(T)) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	n := 0
	for line := range bytes.Lines(data) {
		n++
		if line[len(line)-1] != '\n' {
			break
		}
		var v T
		if err := json.Unmarshal(line, &v); err != nil {
			return fmt.Errorf("%s:%d: %w", file, n, err)
		}
		f(v)
	}
	return nil
}
