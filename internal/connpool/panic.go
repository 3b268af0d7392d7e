package connpool

import (
	"errors"
	"fmt"
)

// A panicError is a panic of the program's code, which dials, on a goroutine that is not the program's.
type panicError struct{ value any }

func (p *panicError) Error() string { return fmt.Sprintf("panic in the program's code: %v", p.value) }

var errExited = errors.New("the program's code exited its goroutine")

// call returns what f returns. Where f panics or exits its goroutine, that is the error.
func call[T any](p *Pool, f func() (T, error)) (value T, err error) {
	err = errExited // unless f returns or panics
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer p.recoverInto(&err)
		value, err = f()
	}()
	<-ended
	return value, err
}

// recoverInto is deferred. It makes a panic the error, and leaves it to the next request that fails or begins, because
// a dial need not have one that waits for it.
func (p *Pool) recoverInto(err *error) {
	if value := recover(); value != nil {
		caught := &panicError{value}
		p.panicked.CompareAndSwap(nil, caught)
		*err = caught
	}
}

// repanic goes on with a panic that was recovered, once.
func (p *Pool) repanic() {
	if caught := p.panicked.Swap(nil); caught != nil {
		panic(caught.value)
	}
}
