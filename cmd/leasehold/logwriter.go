package main

import (
	"io"
	"sync"
	"time"
)

const (
	// logBuffer is how many bytes a logWriter keeps while its destination blocks.
	logBuffer = 256 << 10
	// flushTimeout bounds how long the tool waits at its end for output that blocks.
	flushTimeout = time.Second
)

// A logWriter passes output on to a writer that may block, as a full pipe does, or a terminal after Ctrl-S. Write never
// blocks: it drops lines that do not fit into the buffer, and reports their number once the writer accepts output
// again.
type logWriter struct {
	to    io.Writer
	lost  func(lines int) []byte // the report about dropped lines; nil for none
	limit int

	mu      sync.Mutex // protects following
	pending []byte
	dropped int
	idle    chan struct{} // closed when everything is written; nil while nothing is being written
}

func newLogWriter(to io.Writer) *logWriter { return &logWriter{to: to, limit: logBuffer} }

// Write queues p, which is one line or more.
func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending)+len(p) > w.limit {
		w.dropped++
		return len(p), nil
	}
	w.pending = append(w.pending, p...)
	if w.idle == nil {
		w.idle = make(chan struct{})
		go w.drain(w.idle)
	}
	return len(p), nil
}

// drain writes until nothing is pending, then closes idle.
func (w *logWriter) drain(idle chan struct{}) {
	defer close(idle)
	for {
		next := w.next()
		if next == nil {
			return
		}
		w.to.Write(next) // nobody is left to hear about an error
	}
}

// next returns what to write next, nil if nothing is pending.
func (w *logWriter) next() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := w.pending
	w.pending = nil
	if w.dropped > 0 && w.lost != nil {
		next = append(next, w.lost(w.dropped)...)
	}
	w.dropped = 0
	if len(next) == 0 {
		w.idle = nil
		return nil
	}
	return next
}

// flush waits until everything is written, at most for flushTimeout.
func (w *logWriter) flush() {
	w.mu.Lock()
	idle := w.idle
	w.mu.Unlock()
	if idle == nil {
		return
	}
	select {
	case <-idle:
	case <-time.After(flushTimeout):
	}
}
