import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.AbstractMongoBackend;
import de.bwaldvogel.mongo.backend.h2.H2Backend;
import de.bwaldvogel.mongo.backend.memory.MemoryBackend;
import java.util.List;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/** Serves the MongoDB protocol for tests: MongoDev HOST PORT [FILE]; without a file, in memory only. */
public class MongoDev {
    /** How long an acknowledged write may stay in memory only; a journaling mongod has 100 ms by default. */
    static final int COMMIT_EVERY_MS = 50;

    /** The library's newest version reports wire version 8, below what drivers ask for, though it does all they use. */
    static final class Version5 implements MongoVersion {
        @Override
        public List<Integer> getVersionArray() {
            return List.of(5, 0, 0, 0);
        }

        @Override
        public int getWireVersion() {
            return 13;
        }

        @Override
        public String toVersionString() {
            return "5.0.0";
        }
    }

    public static void main(String[] args) throws Exception {
        String host = args[0];
        int port = Integer.parseInt(args[1]);
        AbstractMongoBackend backend = args.length > 2 ? new H2Backend(args[2]) : new MemoryBackend();
        backend.version(new Version5());
        if (backend instanceof H2Backend file) {
            Executors.newSingleThreadScheduledExecutor(MongoDev::daemon)
                .scheduleWithFixedDelay(file::commit, COMMIT_EVERY_MS, COMMIT_EVERY_MS, TimeUnit.MILLISECONDS);
        }
        MongoServer server = new MongoServer(backend);
        try {
            server.bind(host, port);
        } catch (Exception e) {
            e.printStackTrace();
            System.exit(1); // its threads would keep the process alive
        }
        Runtime.getRuntime().addShutdownHook(new Thread(server::shutdown));
        System.out.println("serving mongodb://" + host + ":" + port + "/");
        Thread.currentThread().join();
    }

    static Thread daemon(Runnable task) {
        Thread thread = new Thread(task);
        thread.setDaemon(true);
        return thread;
    }
}
